"""Who listens on the kernel's packet queues."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfpkd.verifier import listeners
from nfpkd.verifier.listeners import Listener, find_queue_listeners, parse_listeners

# seq_show() prints "%5u %6u %5u %1u %5u %5u %5u %8u %2d".
TABLE = "  100   4321     7 2   512    11    22      333  1\n65535 4294967295     0 2 65531     0     0        0  1\n"


def test_the_kernels_table_is_read_column_by_column() -> None:
    assert parse_listeners(TABLE) == {
        100: Listener(port_id=4321, waiting=7, queue_full=11, socket_full=22),
        65535: Listener(port_id=4294967295, waiting=0, queue_full=0, socket_full=0),
    }


def test_an_empty_table_is_no_listeners() -> None:
    assert parse_listeners("") == {}


def test_the_table_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "nfnetlink_queue"
    table.write_text(TABLE)
    monkeypatch.setattr(listeners, "_PROC", table)
    assert find_queue_listeners() == parse_listeners(TABLE)


def test_a_kernel_without_queues_has_no_listeners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_PROC", tmp_path / "missing")
    assert find_queue_listeners() == {}


def test_this_kernels_own_table_can_be_read() -> None:
    assert all(isinstance(number, int) for number in find_queue_listeners())


@pytest.mark.parametrize(
    "line", ["", " ", "x", "1 2", "1 2 3 4 5 6", "1 2 x 4 5 6 7 8 9", "1 2 -3 4 5 6 7 8 9", "1 " * 6 + "9" * 5000]
)
def test_what_is_no_row_is_passed_over(line: str) -> None:
    assert parse_listeners(f"{line}\n{TABLE}{line}\n") == parse_listeners(TABLE)
