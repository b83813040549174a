"""Which commands may be run at all, and with what around them."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfpkd.errors import TriggerError
from nfpkd.triggers.command import PATH, Account, check_command, describe_account, find_account, make_environment

NOBODY = pwd.getpwnam("nobody").pw_uid
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that only we can write to, below one that is sticky."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve()


def a_program(path: Path, mode: int = 0o755) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def refusal(path: str | Path) -> str:
    with pytest.raises(TriggerError) as caught:
        check_command(str(path))
    return str(caught.value)


@pytest.mark.parametrize("path", ["/bin/sh", "/usr/bin/env"])
def test_the_systems_programs_may_be_run(path: str) -> None:
    check_command(path)


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o500, 0o555, 0o111, 0o4755, 0o6755])
def test_a_program_that_only_its_owner_can_change_may_be_run(place: Path, mode: int) -> None:
    # Below /tmp, which is sticky: others can add there, but not replace.
    check_command(a_program(place / "program", mode))


@pytest.mark.parametrize("path", ["sh", "./sh", "bin/sh", "", "~/x"])
def test_a_path_is_absolute(path: str) -> None:
    assert refusal(path) == f"{path!r} is not an absolute path"


def test_a_program_is_there(place: Path) -> None:
    assert refusal(place / "missing") == f"{place}/missing: no such file or directory"
    a_program(place / "file")
    assert refusal(place / "file" / "program").startswith(f"{place}/file/program: not a directory")


def test_links_in_a_circle_are_refused(place: Path) -> None:
    (place / "one").symlink_to(place / "two")
    (place / "two").symlink_to(place / "one")
    refusal(place / "one")


@pytest.mark.parametrize("mode", [0o644, 0o000, 0o400])
def test_a_program_is_executable(place: Path, mode: int) -> None:
    path = a_program(place / "program", mode)
    assert refusal(path) == f"{path} is not an executable file"


def test_a_directory_is_no_program(place: Path) -> None:
    assert refusal(place) == f"{place} is not an executable file"


def test_a_fifo_is_no_program(place: Path) -> None:
    os.mkfifo(place / "fifo", 0o700)
    assert refusal(place / "fifo") == f"{place}/fifo is not an executable file"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_program_that_others_can_change_is_refused(place: Path, mode: int) -> None:
    path = a_program(place / "program", mode)
    assert refusal(path) == f'others can change {path}: run "chmod go-w {path}"'


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o2775])
@pytest.mark.parametrize("below", ["program", "deeper/program"])
def test_a_directory_that_others_can_change_is_refused(place: Path, mode: int, below: str) -> None:
    folder = place / "loose"
    folder.mkdir()
    path = a_program(folder / below)
    folder.chmod(mode)
    assert refusal(path) == f'others can change {folder}: run "chmod go-w {folder}"'


@pytest.mark.parametrize("mode", [0o1777, 0o1775])
def test_in_a_sticky_directory_others_can_replace_nothing(place: Path, mode: int) -> None:
    folder = place / "sticky"
    folder.mkdir()
    path = a_program(folder / "program")
    folder.chmod(mode)
    check_command(path)


@as_root
@pytest.mark.parametrize("whose", ["owned/program", "owned"])
def test_a_program_or_directory_of_another_user_is_refused(place: Path, whose: str) -> None:
    path = a_program(place / "owned/program")
    os.chown(place / whose, NOBODY, -1)
    assert refusal(path) == f"{place / whose} belongs to user {NOBODY}, who could change it"


def test_a_link_may_lead_to_a_program(place: Path) -> None:
    (place / "link").symlink_to("/bin/sh")
    (place / "second").symlink_to("link")
    (place / "bin").symlink_to("/bin")
    for path in ("link", "second", "bin/sh", "bin/../bin/sh"):
        check_command(str(place / path))


def test_what_a_link_leads_to_counts(place: Path) -> None:
    path = a_program(place / "loose", 0o777)
    (place / "link").symlink_to("loose")
    assert f"others can change {path}" in refusal(place / "link")


@as_root
@pytest.mark.parametrize("path", ["theirs/link", "ours/link", "ours/folder/sh"])
def test_a_link_in_a_directory_of_another_user_is_refused(place: Path, path: str) -> None:
    """They could lead it elsewhere between our look and the command's start."""
    for name in ("theirs", "ours"):
        (place / name).mkdir()
    (place / "theirs/link").symlink_to("/bin/sh")
    (place / "theirs/folder").symlink_to("/bin")
    (place / "ours/link").symlink_to("../theirs/link")
    (place / "ours/folder").symlink_to("../theirs/folder")
    os.chown(place / "theirs", NOBODY, -1)
    assert refusal(place / path) == f"{place}/theirs belongs to user {NOBODY}, who could change it"


@as_root
def test_a_link_of_another_user_in_a_sticky_directory_is_refused(place: Path) -> None:
    (place / "link").symlink_to("/bin/sh")
    os.chown(place / "link", NOBODY, -1, follow_symlinks=False)
    place.chmod(0o1777)
    assert refusal(place / "link") == f"{place}/link belongs to user {NOBODY}, who could change it"


def test_an_account_is_found_with_all_its_groups() -> None:
    entry = pwd.getpwuid(os.geteuid())
    account = find_account(entry.pw_name)
    assert account[:3] == (entry.pw_name, entry.pw_uid, entry.pw_gid)
    assert set(account.groups) == set(os.getgrouplist(entry.pw_name, entry.pw_gid))
    assert account.home == entry.pw_dir


def test_an_account_that_is_not_there_is_refused() -> None:
    with pytest.raises(TriggerError, match="there is no user 'no-such-user' to run it as"):
        find_account("no-such-user")


def test_the_environment_is_exactly_what_a_command_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "evil.so")
    account = Account("www", 33, 33, (33, 4), "/var/www")
    made = make_environment(account, event="open", rule="web", source="192.0.2.1", ports="80/tcp", tag="PKD0")
    assert made == {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": "/var/www",
        "USER": "www",
        "LOGNAME": "www",
        "NFPKD_EVENT": "open",
        "NFPKD_RULE": "web",
        "NFPKD_SOURCE": "192.0.2.1",
        "NFPKD_PORT": "80/tcp",
        "NFPKD_TAG": "PKD0",
    }


def test_an_account_is_described_with_its_group() -> None:
    assert describe_account(Account("root", 0, 0, (0,), "/root")) == "root:root"
    assert describe_account(Account("x", 1, 4_000_000_000, (), "/")) == "x:4000000000"
