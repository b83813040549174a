"""Every input of the fuzzing's corpus, which is all that it ever found a fault with and some more, once."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.fuzz import __main__ as command
from lab.fuzz import mutators, seeds
from lab.fuzz.promise import BrokenPromise
from lab.fuzz.readers import make_readers
from lab.fuzz.targets import NAMES, make_target
from nfpkd.firewall.state import parse_state
from nfpkd.rules import schema
from nfpkd.verifier.store import ReplayStore
from support.strategies import json_values

INPUTS = [(name, path) for name in NAMES for path in sorted((seeds.CORPUS / name).iterdir())]
READERS = {path.read_bytes().partition(b"\n")[0].decode() for name, path in INPUTS if name == "state"}


@pytest.mark.parametrize(
    ("name", "path"), [pytest.param(name, path, id=f"{name}/{path.name}") for name, path in INPUTS]
)
def test_no_input_finds_a_fault(tmp_path: Path, name: str, path: Path) -> None:
    make_target(name, tmp_path)(path.read_bytes())


def test_the_table_as_it_is_now_finds_no_fault(tmp_path: Path) -> None:
    table = seeds.table()
    assert parse_state(json.loads(table)).intact
    make_target("state", tmp_path)(b"listing\n" + table)


@pytest.mark.parametrize(("name", "made"), [("packet", seeds.packets()), ("wire", seeds.knocks())])
def test_seeds_are_what_they_are_called(name: str, made: dict[str, bytes]) -> None:
    """`python -m lab.fuzz.seeds` writes them."""
    assert {seed: (seeds.CORPUS / name / seed).read_bytes() for seed in made} == made


def test_seeds_reach_what_they_are_for(tmp_path: Path) -> None:
    tried = {}
    for name in NAMES:
        scratch = tmp_path / name
        scratch.mkdir()
        target = make_target(name, scratch)
        for other, path in INPUTS:
            if other == name:
                target(path.read_bytes())
        tried[name] = dict(target.tried)
    assert tried["packet"]["decoded"] >= 8
    assert tried["wire"]["decoded"] >= 3
    assert tried["rules"]["enforced"] >= 5
    assert tried["rules"]["refused"] >= 20
    assert tried["state"].keys() == make_readers(tmp_path, thorough=True).keys() == READERS


def let_everything_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hmac, "compare_digest", lambda *_: True)


def show_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schema, "_SECRET_FIELDS", frozenset())


def forget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplayStore, "save", lambda *_: None)


@pytest.mark.parametrize(
    ("name", "data", "spoil"),
    [
        ("packet", seeds.packets()["ipv4-knock"][:-1] + b"x", let_everything_pass),
        ("wire", seeds.knocks()["changed-digest"], let_everything_pass),
        ("rules", b'[{"name": "a", "key": ["M4RK3R"]}, {"name": "b", "key": "M4RK3R"}]', show_keys),
        ("state", b"memory\n", forget),
    ],
)
def test_a_fault_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: bytes,
    spoil: Callable[[pytest.MonkeyPatch], None],
) -> None:
    target = make_target(name, tmp_path)
    target(data)
    spoil(monkeypatch)
    with pytest.raises(BrokenPromise):
        target(data)


def keep(data: bytes, _: int) -> bytes:
    return data


@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()), st.integers(0, 2**32 - 1))
def test_changed_rules_are_no_longer_than_they_may_be(data: bytes, seed: int) -> None:
    changed = mutators.mutate_rules(data, 500, seed, keep)
    assert len(changed) <= max(500, len(data))
    assert changed == mutators.mutate_rules(data, 500, seed, keep)


@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()), st.integers(0, 2**32 - 1))
def test_changed_state_has_its_reader_still(data: bytes, seed: int) -> None:
    changed = mutators.mutate_state(b"listing\n" + data, 20_000, seed, keep)
    assert changed.partition(b"\n")[0].decode() in READERS
    assert len(changed) <= 20_000


def test_every_reader_gets_its_share(tmp_path: Path) -> None:
    target = make_target("state", tmp_path)
    for seed in range(400):
        target(mutators.mutate_state(b"listing\n[]", 20_000, seed, keep))
    assert target.tried.keys() == READERS


def test_made_rules_are_good_ones_often_enough(tmp_path: Path) -> None:
    """Otherwise no more than the refusals would be tried."""
    target = make_target("rules", tmp_path)
    for seed in range(300):
        target(mutators.mutate_rules(b"5", 4000, seed, keep))
    assert target.tried["loaded"] > 10


def test_an_input_is_tried_again_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "input"
    file.write_bytes(seeds.knocks()["changed-digest"])
    assert command.main(["wire", str(file)]) == 0
    let_everything_pass(monkeypatch)
    assert command.main(["wire", str(file), str(file)]) == 1


def test_without_atheris_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert command.main(["wire"]) == 3
    assert "pip install atheris" in capsys.readouterr().err
