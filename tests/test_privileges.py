"""Who may change the firewall; tests/netns/test_privileges.py has what is given up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nfpkd import privileges
from nfpkd.privileges import has_net_admin

MAY = "Name:\tnfpkd\nCapEff:\t000001ffffffffff\n"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for /proc, with this process and process 5."""
    for name in ("self", "5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status").write_text(MAY)
        (tmp_path / name / "uid_map").write_text("0 0 4294967295\n")
    monkeypatch.setattr(privileges, "Path", lambda path: tmp_path / path.removeprefix("/proc/"))
    return tmp_path


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (MAY, True),
        ("CapEff:\t0000000000001000\n", True),
        ("CapEff:\t0000000000000fff\n", False),
        ("CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\n", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("process", [None, 5])
def test_the_effective_capability_counts(proc: Path, process: int | None, status: str, expected: bool) -> None:
    (proc / ("self" if process is None else "5") / "status").write_text(status)
    assert has_net_admin(process) is expected


def test_what_somebody_may_in_a_user_namespace_of_theirs_does_not_count(proc: Path) -> None:
    (proc / "5" / "uid_map").write_text("0 1000 1\n")
    assert not has_net_admin(5)


def test_a_kernel_without_user_namespaces_is_asked_about_this_process_alone(proc: Path) -> None:
    (proc / "self" / "uid_map").unlink()
    assert has_net_admin()


def test_of_real_processes(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=tmp_path) as child:
        assert has_net_admin(child.pid) == has_net_admin() == has_net_admin(os.getpid())
    assert not has_net_admin(child.pid)
