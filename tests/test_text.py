from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nfpkd.text import align

CELLS = st.text("ab ", max_size=50).map(str.strip)


def tables(columns: int = 3) -> st.SearchStrategy[list[tuple[str, ...]]]:
    return st.lists(st.tuples(*[CELLS] * columns), max_size=8)


def test_columns_begin_below_each_other() -> None:
    assert list(align([("a", "bb", "c"), ("aaa", "b", "cc")])) == ["  a    bb  c", "  aaa  b   cc"]


def test_a_column_that_is_always_empty_takes_no_room() -> None:
    assert list(align([("a", "", "c"), ("b", "", "d")], indent="")) == ["a  c", "b  d"]
    assert list(align([("a", "", "c"), ("b", "x", "d")], indent="")) == ["a     c", "b  x  d"]


def test_a_wide_cell_moves_its_own_row_alone() -> None:
    short, long = align([("a", "b"), ("x" * 60, "y")], indent="")
    assert short.index("b") == 42
    assert long == "x" * 60 + "  y"


def test_no_rows_are_no_lines() -> None:
    assert list(align([])) == []


@given(tables())
def test_every_row_is_a_line_with_its_cells_in_order(rows: list[tuple[str, ...]]) -> None:
    lines = list(align(rows))
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert line == line.rstrip()
        assert line.split() == " ".join(row).split()
