"""The chart."""

from __future__ import annotations

import math
import re

from lab.bench.svg import render_svg


def bars(svg: str) -> list[tuple[str, float]]:
    """Return the kind and the length of each bar."""
    return [(kind, float(width)) for kind, width in re.findall(r'<rect class="(\w)" [^>]*width="([0-9.]+)"', svg)]


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_ten_times_as_much_is_one_step_more() -> None:
    (_, one), (_, ten), (_, hundred) = bars(render_svg("t", [("a", 0.2), ("b", 2.0), ("c", 20.0)], "ms"))
    assert one > 0
    assert math.isclose(ten - one, hundred - ten, abs_tol=0.2)


def test_ours_stands_out() -> None:
    assert [kind for kind, _ in bars(render_svg("t", [("nfpkd", 1.0), ("knockd", 2.0)], "ms"))] == ["o", "b"]


def test_what_is_said() -> None:
    shown = texts(render_svg("knock & connect", [("a <b>", 0.05)], "ms"))
    assert "knock &amp; connect" in shown
    assert "a &lt;b&gt;" in shown
    assert "0.0500 ms" in shown


def test_what_has_no_length_is_left_out() -> None:
    assert bars(render_svg("t", [("lost", math.nan), ("none", 0.0), ("a", 1.0)], "ms")) == [("b", 2.0)]
    assert bars(render_svg("t", [], "ms")) == []
