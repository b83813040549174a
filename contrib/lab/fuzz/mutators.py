"""How inputs that have a grammar are changed, so that more than the parser gets to see them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from lab.fuzz.known import OTHER_KEY_TEXT
from lab.fuzz.seeds import CORPUS
from nfpkd.rules.schema import load_schema

MutateBytes = Callable[[bytes, int], bytes]
Mutator = Callable[[bytes, int, int, MutateBytes], bytes]
_Path = tuple[Any, ...]
# Makes a value for where a path leads to.
_Make = Callable[[_Path, Random], Any]

_SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    *(-1, 0, 1, 22, 32, 33, 128, 255, 4097, 65535, 65536, 2**31, 2**32, 2**63, 2**64, 10**60, 10**64),
    *(0.0, -0.0, 1.5, 22.0, 1e300, 1e999),
)
_STRINGS = (
    *("", "a", "ssh", "M4RK3R", OTHER_KEY_TEXT, "0x", "0xabc", "0xzz", "k" * 41, "a b", "tcp", "any", "drop"),
    *("22", "1-65535", "9-1", "0-1", "8000-8010", "70000-70001", "2027-01-31T12:00:00Z", "2027-13-31T12:00:00+01:00"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "192.0.2.1", "192.0.2.0/24", "192.0.2.1/24"),
    *("2001:db8::/32", "fe80::1%eth0", "eth0", "lo", "/bin/true", "/bin/echo 'a b'", "/bin/echo 'a", "true", "\\"),
    *("\0", "\n", "\x1b[2J", '"', "ä", "\U0001f600", "\ud800", "\udc00\ud83d", "\u202e", "x" * 200),
    *("grants4", "gated", "once4_if", "extend6_net64_5s", "layout 0123456789ab limit 20", "queue 7", "@gated"),
)
# Written where they stand, for no JSON writer makes them.
_TRAPS = (
    *("NaN", "-Infinity", "[" * 40, "[" * 5000, '{"a":' * 2000, "9" * 5000, "1e999999", "-0", "01", "true", "'a'"),
    *('"port": 1, "port": 2,', '"\\ud800"', "\\ud800", "\ufeff", "\0", "\t", "//", ",", "]", "}", '"', "\\", "\u2028"),
)


# What is right for the fields whose schema is no more than "a string".
_WORDS = {
    "name": ("a", "b", "ssh", "every.field_1-a"),
    "key": ("M4RK3R", "M4RK3R-0123456789abcdef", OTHER_KEY_TEXT, "0xabc"),
    "tag": ("PKD0", "SSH1", "0x50", "ä"),
    "not-before": ("2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"),
    "not-after": ("2027-01-31T12:00:00+01:00", "9999-12-31T23:59:59Z"),
    "port": ("8000-8010", "22-22"),
    "knock-port": ("1-1023", "4000-5000"),
    "interfaces": ("eth0", "lo", "br-0123456789ab"),
    "from": ("192.0.2.0/24", "2001:db8::/32", "::ffff:192.0.2.1"),
    "ext-command": ("/bin/true", "/usr/bin/logger -t 'a b' \"c d\""),
    "close-command": ("/bin/true", "/bin/echo"),
    "ext-user": ("root", "nobody"),
}


def mutate_rules(data: bytes, max_size: int, seed: int, mutate_bytes: MutateBytes) -> bytes:
    """Change a rule file: mostly one or a few of its values, as the schema would have them or not."""
    random = Random(seed)
    if random.random() < 0.1:
        return mutate_bytes(data, max_size)
    if random.random() < 0.3:
        made = json.dumps([_make_rule(random) for _ in range(random.choice((1, 1, 1, 2, 3)))]).encode()
        if len(made) <= max_size:
            return made
    return _mutate_json(data, max_size, random, mutate_bytes, _make_by_schema)


def _make_rule(random: Random) -> Any:
    """Return a rule that is mostly right, with a few of its fields."""
    rule = _generate(load_schema()["$defs"]["rule"], random)
    # One of each is needed.
    for field in (random.choice(("key", "key", "key", "keys")), random.choice(("port", "port", "port", "ext-command"))):
        rule[field] = _make_by_schema((0, field), random)
    return rule


def mutate_state(data: bytes, max_size: int, seed: int, mutate_bytes: MutateBytes) -> bytes:
    """Change what is read, and leave the first line, which says by whom.

    Left alone, libFuzzer would spend nearly all of its time on the readers with the most
    code: so every second input is one of the seeds of any reader, changed.
    """
    random = Random(seed)
    if random.random() < 0.5:
        data = random.choice(random.choice(_seeds_of_readers()))
    name, _, body = data.partition(b"\n")
    room = max_size - len(name) - 1
    if room > 0 and name in _JSON_READERS and random.random() < 0.9:
        return name + b"\n" + _mutate_json(body, room, random, mutate_bytes, _make_anything)
    return name + b"\n" + (mutate_bytes(body, room) if room > 0 else b"")


@functools.cache
def _seeds_of_readers() -> tuple[tuple[bytes, ...], ...]:
    by_reader: dict[bytes, list[bytes]] = {}
    for path in sorted((CORPUS / "state").iterdir()):
        seed = path.read_bytes()
        by_reader.setdefault(seed.partition(b"\n")[0], []).append(seed)
    return tuple(map(tuple, by_reader.values()))


MUTATORS: Mapping[str, Mutator] = {"rules": mutate_rules, "state": mutate_state}
_JSON_READERS = {b"pending", b"listing", b"others", b"nf-pkd"}


def _mutate_json(data: bytes, max_size: int, random: Random, mutate_bytes: MutateBytes, make: _Make) -> bytes:
    """Change values of a JSON text; *make* makes new ones."""
    try:
        root = [json.loads(data)]
        for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
            _change(root, random, make)
        # With an indentation the writer is slow; this makes lines, too.
        comma = random.choice((",", ", ", ",\n"))
        text = json.dumps(root[0], separators=(comma, ":"), ensure_ascii=random.random() < 0.7)
    except (ValueError, RecursionError):
        return _set_trap(data, random)[:max_size] if random.random() < 0.2 else mutate_bytes(data, max_size)
    changed = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.05:
        changed = _set_trap(changed, random)
    # Cut off, nearly all of them would be no more than that.
    return changed if len(changed) <= max_size else mutate_bytes(data, max_size)


def _set_trap(data: bytes, random: Random) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.choice(_TRAPS).encode() + data[at + random.choice((0, 0, 1, 4)) :]


def _change(root: list[Any], random: Random, make: _Make) -> None:
    places = list(_walk(root))
    path, container, key = random.choice(places)
    match random.randrange(8):
        case 0 | 1 | 2:
            container[key] = make(path, random)
        case 3:
            _, other, other_key = random.choice(places)
            container[key] = json.loads(json.dumps(other[other_key]))
        case 4 if container is not root:
            del container[key]
        case 5 if isinstance(container, list):
            container.insert(key, json.loads(json.dumps(container[key])))
        case 6 if isinstance(container, dict):
            container[random.choice(_STRINGS)] = container.pop(key)
        case _:
            value = container[key]
            if isinstance(value, dict):
                _add_field(value, path, random, make)
            elif isinstance(value, list):
                value.append(make((*path, len(value)), random))
            else:
                container[key] = make((), random)


def _walk(root: list[Any]) -> list[tuple[_Path, Any, Any]]:
    """Return every value's path, the container that it is in, and its index or key there."""
    found = []
    waiting: list[tuple[_Path, Any]] = [((), root)]
    while waiting:
        path, container = waiting.pop()
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            # The root is not a part of what is changed.
            inner = () if container is root else (*path, key)
            found.append((inner, container, key))
            if isinstance(value, (dict, list)):
                waiting.append((inner, value))
    return found


def _add_field(value: dict[str, Any], path: _Path, random: Random, make: _Make) -> None:
    known = _schema_at(path) if make is _make_by_schema else None
    names = list(known["properties"]) if known and "properties" in known else [*value, *_STRINGS]
    name = random.choice(names)
    value[name] = make((*path, name), random)


def _make_anything(_: _Path, random: Random) -> Any:
    match random.randrange(6):
        case 0 | 1:
            return random.choice(_SCALARS)
        case 2 | 3:
            return random.choice(_STRINGS)
        case 4:
            return [random.choice(_SCALARS + _STRINGS) for _ in range(random.randrange(4))]
        case _:
            return {random.choice(_STRINGS): random.choice(_SCALARS + _STRINGS) for _ in range(random.randrange(3))}


def _make_by_schema(path: _Path, random: Random) -> Any:
    """Return what may stand where *path* leads to, or nearly; sometimes anything else."""
    schema = _schema_at(path)
    if schema is None or random.random() < 0.1:
        return _make_anything(path, random)
    return _generate(schema, random, _WORDS.get(str(path[1]) if len(path) > 1 else "", ()))


def _schema_at(path: _Path) -> dict[str, Any] | None:
    schema = load_schema()
    for step in path:
        for option in _options(schema):
            if isinstance(step, int) and "items" in option:
                schema = option["items"]
                break
            if step in option.get("properties", ()):
                schema = option["properties"][step]
                break
        else:
            return None
    return _resolve(schema)


def _options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    resolved = _resolve(schema)
    return [_resolve(option) for option in resolved.get("anyOf", [resolved])]


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = functools.reduce(lambda part, name: part[name], schema["$ref"].split("/")[1:], load_schema())
    return schema


def _generate(schema: dict[str, Any], random: Random, words: Sequence[str] = ()) -> Any:
    """Return a value for *schema*, within its bounds or just beyond them; *words* are right where it wants a string."""
    chosen = random.choice(_options(schema))
    if "const" in chosen:
        return chosen["const"]
    if "enum" in chosen:
        return random.choice(chosen["enum"])
    match chosen.get("type"):
        case "integer":
            low, high = chosen["minimum"], chosen["maximum"]
            return random.choice((low, low + 1, high, *[random.randint(low, high)] * 5, low - 1, high + 1))
        case "boolean":
            return random.random() < 0.5
        case "array":
            length = random.choice((0, 1, 1, 1, 1, 1, 1, 2, 3, 17))
            return [_generate(chosen["items"], random, words) for _ in range(length)]
        case "object":
            names = random.sample(list(chosen["properties"]), random.randint(0, min(4, len(chosen["properties"]))))
            given = {*chosen.get("required", ()), *names}
            fields = chosen["properties"]
            return {name: _generate(fields[name], random, _WORDS.get(name, ())) for name in sorted(given)}
        case _:
            return random.choice(words if words and random.random() < 0.9 else _STRINGS)
