"""The JSON Schema of rule files: alone imports jsonschema, and turns its findings into plain words."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jsonschema

from nfpkd.rules.positions import Path

_SECRET_FIELDS = frozenset({"key", "keys"})


class Finding(NamedTuple):
    """What is wrong with the value, or the key, that *path* leads to."""

    path: Path
    message: str
    at_key: bool = False


@functools.cache
def load_schema() -> dict[str, Any]:
    """Return the schema that is shipped with nfpkd."""
    text = importlib.resources.files("nfpkd.schemas").joinpath("nfpkd-rules.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    # jsonschema spends a fifth of its time on following references: 0.39 s instead of 0.31 for 10,000 rules.
    schema = load_schema()
    return jsonschema.Draft202012Validator(_without_references(schema, schema["$defs"]))


def _without_references(node: Any, definitions: dict[str, Any]) -> Any:
    """Return *node* with what its ``$ref``s name put in their place."""
    if isinstance(node, list):
        return [_without_references(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    resolved = {name: _without_references(value, definitions) for name, value in node.items() if name != "$defs"}
    reference = resolved.pop("$ref", None)
    if reference is None:
        return resolved
    return _without_references(definitions[reference.removeprefix("#/$defs/")], definitions) | resolved


def prepare() -> None:
    """Load everything now: later, the process may no longer be allowed to read it."""
    _validator()


def find_faults(document: object) -> Iterator[Finding]:
    """Yield what the schema has against *document*, a parsed rule file; no message repeats a key."""
    seen = set()
    for error in _validator().iter_errors(document):
        for finding in _explain(error, document):
            # One fault can break several keywords of the schema.
            if (finding.path, finding.message) not in seen:
                seen.add((finding.path, finding.message))
                yield finding
    yield from _find_whole_floats(document)


def _find_whole_floats(document: object) -> Iterator[Finding]:
    """JSON Schema counts 22.0 as an integer; a rule file should say 22."""
    if not isinstance(document, list):
        return
    for index, rule in enumerate(document):
        if isinstance(rule, dict):
            for field, value in rule.items():
                for path in _find_whole(value):
                    yield Finding((index, field, *path), f'"{field}" must be written without a decimal point')


def _find_whole(value: object) -> Iterator[Path]:
    if isinstance(value, float) and value.is_integer():
        yield ()
    elif isinstance(value, (dict, list)):
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            for path in _find_whole(inner):
                yield (step, *path)


def _explain(error: jsonschema.ValidationError, document: object) -> Iterator[Finding]:
    path = tuple(error.absolute_path)
    schema: Any = error.schema
    instance: Any = error.instance
    if error.validator == "required":
        for missing in schema["required"]:
            if missing not in instance:
                yield Finding(path, f'{_name_object(path)} has no "{missing}"')
    elif error.validator == "additionalProperties":
        known = schema["properties"]
        for unknown in instance.keys() - known.keys():
            message = _explain_unknown(unknown, known, _name_object(path))
            yield Finding((*path, unknown), message, at_key=True)
    elif len(path) < 2:
        what = "the file" if not path else "each entry of the list"
        hint = "; put [ and ] around it" if isinstance(document, dict) else ""
        yield Finding(path, f"{what} {schema['errorMessage']}{hint}")
    else:
        field = str(path[1])
        expected = load_schema()["$defs"]["rule"]["properties"][field]["errorMessage"]
        given = "" if field in _SECRET_FIELDS else _show(instance)
        yield Finding(path, f'"{field}" {expected}{given}')


def _name_object(path: Path) -> str:
    return "the rule" if len(path) < 2 else f'"{path[1]}"'


def _explain_unknown(name: str, known: dict[str, object], owner: str) -> str:
    shown = json.dumps(name[:40])
    if name == "$schema":
        return '"$schema" has no place in a rule; the README shows how to tell an editor'
    nearest = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1)
    hint = f'did you mean "{nearest[0]}"?' if nearest else f"known are {', '.join(known)}"
    return f"{shown} is not a field of {owner}; {hint}"


def _show(value: object) -> str:
    """Return ``, not VALUE`` for values short enough to be of help, escaped."""
    shown = json.dumps(value)
    return f", not {shown}" if len(shown) <= 40 and not _holds_fields(value) else ""


def _holds_fields(value: object) -> bool:
    """Tell whether there are fields in *value*: behind a bracket that is missing, one may be a key."""
    if isinstance(value, list):
        return any(map(_holds_fields, value))
    return isinstance(value, dict) and bool(value)
