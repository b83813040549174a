"""Reading rule files from a directory: which files, whose, and everything wrong at once."""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfpkd.errors import Problem, RulesError
from nfpkd.rules import loader
from nfpkd.rules.build import BuiltFile, build_rules
from nfpkd.rules.loader import MAX_FILE_SIZE, RuleLoader, load_rules, stamp_files
from nfpkd.rules.model import Rule
from nfpkd.rules.positions import Document

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no group nfpkd, which this machine may have, and which tells what is right."""
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)


def rule(name: str = "ssh", **fields: object) -> dict[str, object]:
    return {"name": name, "key": "k", "port": 22, **fields}


def write(path: Path, content: object = None, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps([content or rule(path.stem)]).encode())
    path.chmod(mode)
    return path


def names(directory: Path) -> list[str]:
    return [found.name for found in load_rules(directory).rules]


def problems(directory: Path, *, strict_modes: bool = True) -> list[Problem]:
    with pytest.raises(RulesError) as caught:
        load_rules(directory, strict_modes=strict_modes)
    return list(caught.value.problems)


def problem(directory: Path, *, strict_modes: bool = True) -> Problem:
    (only,) = problems(directory, strict_modes=strict_modes)
    return only


def test_files_are_read_sorted_by_path_with_sub_directories(tmp_path: Path) -> None:
    for name in ("b.json", "a/z.json", "a/b/y.json", "a.json", "c/x.json"):
        write(tmp_path / name)
    paths = sorted(tmp_path.rglob("*.json"))
    assert names(tmp_path) == [path.stem for path in paths]
    loaded = load_rules(tmp_path)
    assert loaded.files == len(loaded.texts) == 5


def test_rules_keep_their_order_inside_a_file(tmp_path: Path) -> None:
    write(tmp_path / "x.json", json.dumps([rule("b"), rule("a")]).encode())
    loaded = load_rules(tmp_path)
    assert [type(found) for found in loaded.rules] == [Rule, Rule]
    assert [found.name for found in loaded.rules] == ["b", "a"]


def test_an_empty_directory_holds_no_rules(tmp_path: Path) -> None:
    assert load_rules(tmp_path) == ((), (), 0, ())


@pytest.mark.parametrize(
    "name", [".hidden.json", ".git/x.json", "..data/x.json", "x.json~", "x.json.bak", "x.JSON", "README", "json", "#x#"]
)
def test_other_files_are_no_rule_files(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"not a rule", mode=0o666)
    assert load_rules(tmp_path) == ((), (), 0, ())


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    write(tmp_path / "x.json", b"\xef\xbb\xbf[]")
    assert load_rules(tmp_path).rules == ()


def test_positions_count_behind_the_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path / "x.json", b"\xef\xbb\xbf[5]")
    assert problem(tmp_path)[1:3] == (1, 2)


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b"\xff", 1, 1),
        (b'["a\xff"]', 1, 4),
        (b'[\n "\xff"]', 2, 3),
        (b"[]\n\xc3", 2, 1),
        (b"\n\n[\xed\xa0\x80]", 3, 2),
        (b"[\xc0\xaf]", 1, 2),
        # Columns count characters, as they do in all other messages.
        ('["ä'.encode() + b'\xff"]', 1, 4),
        (b"\xef\xbb\xbf[\xff]", 1, 2),
        (b"\xef\xbb\xbf[\n\xff]", 2, 1),
        ("[]".encode("utf-16"), 1, 1),
    ],
)
def test_what_is_not_utf8_is_refused_in_its_place(tmp_path: Path, data: bytes, line: int, column: int) -> None:
    path = write(tmp_path / "x.json", data)
    assert problem(tmp_path) == Problem(str(path), line, column, "is not UTF-8 text")


def test_a_missing_directory_is_one_problem_with_a_remedy(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    only = problem(missing)
    assert (only.path, only.line) == (str(missing), 0)
    assert only.message.startswith("no such file or directory: create it, or say where")


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json")
    assert problem(path) == Problem(str(path), 0, 0, "not a directory")


def test_a_directory_named_like_a_rule_file_is_a_mistake(tmp_path: Path) -> None:
    write(tmp_path / "x.json" / "y.json")
    assert problem(tmp_path) == Problem(str(tmp_path / "x.json"), 0, 0, "is a directory, but named like a rule file")


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json", 0o600)
    assert problem(tmp_path).message == "is not a regular file"


def test_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("/dev/null")
    assert problem(tmp_path).message == "is not a regular file"


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A socket's path is short; a test directory's is not.
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("x.json")
        assert problem(tmp_path) == Problem(str(tmp_path / "x.json"), 0, 0, os.strerror(errno.ENXIO).lower())


def test_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "one.json")
    write(tmp_path / "elsewhere" / "folder" / "two.json")
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "a.json").symlink_to("../elsewhere/one.json")
    (rules / "b").symlink_to(tmp_path / "elsewhere" / "folder")
    assert names(rules) == ["one", "two"]


def test_a_config_map_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "..2024_01" / "x.json")
    (tmp_path / "..data").symlink_to("..2024_01")
    (tmp_path / "x.json").symlink_to("..data/x.json")
    assert names(tmp_path) == ["x"]


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("x.json")
    assert problem(tmp_path) == Problem(str(tmp_path / "x.json"), 0, 0, os.strerror(errno.ELOOP).lower())


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("gone")
    assert problem(tmp_path).message.startswith("no such file or directory")


def test_a_link_that_cannot_be_followed_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("x" * 300)
    expected = Problem(str(tmp_path / "x.json"), 0, 0, os.strerror(errno.ENAMETOOLONG).lower())
    assert problem(tmp_path) == expected
    assert stamp_files(tmp_path) == {expected}


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be bound by file modes, which root is not."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("name", ["folder", "x.json"])
def test_what_may_not_be_looked_at_is_a_problem_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Permission to read a directory without permission to search it shows names, and no more."""
    write(tmp_path / "rules" / name)
    (tmp_path / "rules").chmod(0o444)
    tmp_path.chmod(0o755)
    # Nobody may not come here from the root directory.
    monkeypatch.chdir(tmp_path)
    with as_nobody():
        found = problem(Path("rules"), strict_modes=False)
        stamps = stamp_files(Path("rules"))
    assert found == Problem(f"rules/{name}", 0, 0, "permission denied")
    assert stamps == {found}


def test_a_file_that_may_not_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "rules" / "x.json", mode=0)
    (tmp_path / "rules").chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with as_nobody():
        found = problem(Path("rules"), strict_modes=False)
    assert found == Problem("rules/x.json", 0, 0, "permission denied")


def test_directories_that_link_to_each_other_are_visited_once(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.json")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "again").symlink_to("a")
    assert names(tmp_path) == ["x"]


def test_a_directory_that_cannot_be_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "closed" / "x.json")
    write(tmp_path / "open" / "y.json", b"5")
    real = os.scandir

    def fake_scandir(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", fake_scandir)
    found = problems(tmp_path)
    assert found[0] == Problem(str(tmp_path / "closed"), 0, 0, "permission denied")
    assert found[1].path.endswith("y.json")


def test_an_error_without_words_of_its_own_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_scandir(_: Path) -> object:
        raise OSError("Strange")

    monkeypatch.setattr(os, "scandir", fake_scandir)
    assert problem(tmp_path).message == "strange"


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json")
    os.truncate(path, MAX_FILE_SIZE + 1)
    assert problem(tmp_path) == Problem(str(path), 0, 0, "is larger than 64 MiB")


@pytest.mark.parametrize("grown", [0, 1])
def test_a_file_may_grow_up_to_the_limit_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grown: int
) -> None:
    write(tmp_path / "x.json", b"[" + b" " * (100 + grown - 2) + b"]")
    monkeypatch.setattr(loader, "MAX_FILE_SIZE", 100)
    real = os.fstat

    def before_it_grew(descriptor: int) -> os.stat_result:
        return os.stat_result([*real(descriptor)[:6], 10, *real(descriptor)[7:]])

    monkeypatch.setattr(os, "fstat", before_it_grew)
    if grown:
        assert problem(tmp_path).message.startswith("is larger than")
    else:
        assert load_rules(tmp_path).files == 1


def test_everything_wrong_in_all_files_is_reported_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.json", b"[,]")
    write(tmp_path / "b.json", b'[{"name": "b"}]')
    write(tmp_path / "c.json", mode=0o644)
    write(tmp_path / "d.json")
    write(tmp_path / "e.json", b'[5,\n{"name": "e", "key": "k", "port": 0}]')
    found = [(Path(path).name, line) for path, line, _, _ in problems(tmp_path)]
    assert found == [("a.json", 1), ("b.json", 1), ("b.json", 1), ("c.json", 0), ("e.json", 1), ("e.json", 2)]


def test_conflicts_between_files_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a.json", rule("ssh"))
    write(tmp_path / "b.json", rule("ssh", reject="reset"))
    found = problems(tmp_path)
    assert [Path(path).name for path, _, _, _ in found] == ["b.json", "b.json"]
    assert all(f"{tmp_path / 'a.json'}:1" in message for _, _, _, message in found)


def test_warnings_stop_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", rule(key="0xabc"))
    loaded = load_rules(tmp_path)
    assert len(loaded.rules) == 1
    assert [warning.path for warning in loaded.warnings] == [str(path)]


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440, 0o700])
def test_a_file_that_nobody_else_can_read_is_in_order(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "x.json", mode=mode)
    assert load_rules(tmp_path).files == 1


@pytest.mark.parametrize(
    ("mode", "can"),
    [
        (0o604, "read"),
        (0o644, "read"),
        (0o601, "read"),
        (0o620, "change"),
        (0o660, "change"),
        (0o602, "change"),
        (0o666, "change"),
    ],
)
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int, can: str) -> None:
    path = write(tmp_path / "x.json", mode=mode)
    message = f'others can {can} this file with its keys: run "chmod 600 {path}"'
    assert problem(tmp_path) == Problem(str(path), 0, 0, message)


@as_root
@pytest.mark.parametrize("mode", [0o640, 0o440, 0o660])
def test_a_foreign_group_can_read_nothing(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "x.json", mode=mode)
    os.chown(path, -1, 12345)
    assert "others can" in problem(tmp_path).message


@as_root
@pytest.mark.parametrize(("mode", "named"), [(0o640, "nfpkd"), (0o640, "others"), (0o660, "nfpkd"), (0o644, "nfpkd")])
def test_the_services_group_may_read_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, named: str
) -> None:
    os.chown(write(tmp_path / "x.json", mode=mode), -1, 12345)
    groups = {named: grp.struct_group((named, "x", 12345, []))}
    monkeypatch.setattr(grp, "getgrnam", groups.__getitem__)
    if (mode, named) == (0o640, "nfpkd"):
        assert load_rules(tmp_path).files == 1
    else:
        assert "this file with its keys" in problem(tmp_path).message


@as_root
def test_nfpkds_own_group_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(write(tmp_path / "x.json", mode=0o640), -1, 12345)
    monkeypatch.setattr(os, "getegid", lambda: 12345)
    assert load_rules(tmp_path).files == 1


@pytest.mark.parametrize("ours", [True, False])
def test_the_service_is_told_how_to_get_at_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ours: bool
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write(tmp_path / "x.json")
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", os.getegid() + (not ours), [])))
    remedy = f': let the service read it: run "chgrp nfpkd {path}" and "chmod 640 {path}"' if ours else ""
    assert problem(tmp_path).message == f"permission denied{remedy}"


def test_the_service_is_told_how_to_get_into_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", os.getegid(), [])))
    remedy = f'let the service read it: run "chgrp nfpkd {tmp_path}" and "chmod g+rx {tmp_path}"'
    assert problem(tmp_path).message == f"permission denied: {remedy}"


@as_root
@pytest.mark.parametrize(
    ("groups", "owner", "remedy"),
    [
        (["nfpkd"], 0, 'run "chgrp nfpkd FILE" and "chmod 640 FILE"'),
        ([], 0, 'run "chmod 600 FILE"'),
        # Somebody's own rules, which the service does not read.
        (["nfpkd"], 12345, 'run "chmod 600 FILE"'),
    ],
)
def test_a_remedy_is_right_for_this_machine_and_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list[str], owner: int, remedy: str
) -> None:
    path = write(tmp_path / "it's.json", rule(), mode=0o644)
    os.chown(path, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    known = {name: grp.struct_group((name, "x", 23456, [])) for name in groups}
    monkeypatch.setattr(grp, "getgrnam", known.__getitem__)
    said = problem(tmp_path).message
    assert said == f"others can read this file with its keys: {remedy.replace('FILE', shlex.quote(str(path)))}"
    for command in re.findall('"(.*?)" and|"(.*?)"$', said):
        name, argument, _ = shlex.split(command[0] or command[1])
        os.chown(path, -1, known[argument].gr_gid) if name == "chgrp" else path.chmod(int(argument, 8))
    assert load_rules(tmp_path).files == 1


@as_root
@pytest.mark.parametrize("named", ["x.json", "."])
def test_a_file_or_directory_of_another_user_is_refused(tmp_path: Path, named: str) -> None:
    write(tmp_path / "x.json")
    os.chown(tmp_path / named, 12345, -1)
    message = f'belongs to user 12345, who could change it: run "chown root {tmp_path / named}"'
    assert problem(tmp_path) == Problem(str(tmp_path / named), 0, 0, message)


@as_root
def test_files_of_root_and_of_nfpkds_own_user_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root.json")
    os.chown(write(tmp_path / "own.json"), 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert names(tmp_path) == ["own", "root"]


@pytest.mark.parametrize(
    ("mode", "loose"), [(0o755, False), (0o700, False), (0o775, True), (0o757, True), (0o1777, True)]
)
def test_a_directory_that_others_can_add_to_is_refused(tmp_path: Path, mode: int, loose: bool) -> None:
    folder = write(tmp_path / "folder" / "x.json").parent
    folder.chmod(mode)
    if loose:
        assert problem(tmp_path) == Problem(str(folder), 0, 0, f'others can add rules here: run "chmod go-w {folder}"')
    else:
        assert load_rules(tmp_path).files == 1


def test_the_target_of_a_link_is_what_counts(tmp_path: Path) -> None:
    target = write(tmp_path / "target", mode=0o644)
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "x.json").symlink_to(target)
    assert problem(rules).path == str(rules / "x.json")
    target.chmod(0o600)
    assert load_rules(rules).files == 1


@as_root
def test_a_file_can_be_loose_in_two_ways(tmp_path: Path) -> None:
    os.chown(write(tmp_path / "x.json", mode=0o666), 12345, -1)
    assert len(problems(tmp_path)) == 2


def test_a_loose_file_is_not_read(tmp_path: Path) -> None:
    """Its rules are not told apart from what somebody put there."""
    write(tmp_path / "x.json", b"nonsense", mode=0o666)
    assert "others can change" in problem(tmp_path).message


@as_root
def test_without_strict_modes_nobody_is_asked(tmp_path: Path) -> None:
    os.chown(write(tmp_path / "x.json", mode=0o666), 12345, 12345)
    tmp_path.chmod(0o777)
    assert load_rules(tmp_path, strict_modes=False).files == 1


def test_stamps_stay_while_nothing_changes(tmp_path: Path) -> None:
    write(tmp_path / "a.json")
    write(tmp_path / "b" / "c.json")
    stamps = stamp_files(tmp_path)
    assert {Path(stamp.path).name for stamp in stamps} == {"a.json", "c.json"}
    load_rules(tmp_path)
    assert stamp_files(tmp_path) == stamps


def test_stamps_change_with_a_write_a_rename_a_new_file_and_a_mode(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json")
    seen = {stamp_files(tmp_path)}
    path.write_text("[]")
    seen.add(stamp_files(tmp_path))
    write(tmp_path / "new").replace(path)
    seen.add(stamp_files(tmp_path))
    write(tmp_path / "b.json")
    seen.add(stamp_files(tmp_path))
    path.chmod(0o400)
    seen.add(stamp_files(tmp_path))
    path.unlink()
    seen.add(stamp_files(tmp_path))
    assert len(seen) == 6


def link_to_nothing(path: Path) -> None:
    path.symlink_to("gone")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [link_to_nothing, link_to_itself, Path.mkdir])
def test_stamps_change_with_what_cannot_be_looked_at(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Or a running nfpkd would say nothing of what keeps the next one from starting."""
    write(tmp_path / "a.json")
    before = stamp_files(tmp_path)
    make(tmp_path / "b.json")
    assert stamp_files(tmp_path) > before
    assert stamp_files(tmp_path) == stamp_files(tmp_path)
    assert {Path(stamp.path).name for stamp in stamp_files(tmp_path)} == {"a.json", "b.json"}


def test_a_directory_that_is_not_there_has_a_stamp_too(tmp_path: Path) -> None:
    assert stamp_files(tmp_path / "missing") == frozenset(problems(tmp_path / "missing"))


# Reading again


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files were parsed and checked, by name."""
    found: list[str] = []
    real_build_rules = build_rules

    def note(document: Document) -> BuiltFile:
        found.append(Path(document.problem((), "").path).name)
        return real_build_rules(document)

    monkeypatch.setattr(loader, "build_rules", note)
    return found


def test_only_what_changed_is_checked_again(tmp_path: Path, built: list[str]) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json")
    rules = RuleLoader(tmp_path)
    first = rules.load()
    assert rules.load() == first
    assert built == ["a.json", "b.json"]
    write(tmp_path / "b.json", rule("c"))
    assert [found.name for found in rules.load().rules] == ["a", "c"]
    assert built == ["a.json", "b.json", "b.json"]
    (tmp_path / "a.json").unlink()
    assert [found.name for found in rules.load().rules] == ["c"]


def test_a_change_that_no_time_stamp_shows_is_seen(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", rule("a"))
    rules = RuleLoader(tmp_path)
    rules.load()
    info = file.stat()
    write(file, rule("b"))
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert [found.name for found in rules.load().rules] == ["b"]


def test_what_is_between_files_is_found_also_where_one_did_not_change(tmp_path: Path) -> None:
    write(tmp_path / "a.json")
    rules = RuleLoader(tmp_path)
    rules.load()
    write(tmp_path / "b.json", rule("a"))
    with pytest.raises(RulesError, match="already used"):
        rules.load()
    write(tmp_path / "b.json")
    assert [found.name for found in rules.load().rules] == ["a", "b"]


def test_a_file_with_an_error_is_checked_until_it_has_none(tmp_path: Path) -> None:
    write(tmp_path / "a.json")
    rules = RuleLoader(tmp_path)
    rules.load()
    for _ in range(2):
        write(tmp_path / "a.json", b"[")
        with pytest.raises(RulesError, match="not valid JSON"):
            rules.load()
    write(tmp_path / "a.json")
    assert [found.name for found in rules.load().rules] == ["a"]


def test_a_mode_that_changes_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json")
    rules = RuleLoader(tmp_path)
    rules.load()
    file.chmod(0o644)
    with pytest.raises(RulesError, match="others can read"):
        rules.load()
