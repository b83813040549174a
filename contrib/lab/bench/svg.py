"""A bar chart on a logarithmic scale, small enough for a README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from lab.bench.figures import shown

_WIDTH, _LABELS, _VALUES, _BAR, _GAP, _TOP = 720, 190, 90, 22, 10, 36
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.t{font-weight:bold}.v{fill:#555}"
    ".b{fill:#9aa5b1}.o{fill:#1f6feb}.g{stroke:#ddd}.s{fill:#888;font-size:11px}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.v{fill:#aaa}.g{stroke:#444}}"
)


def render_svg(title: str, bars: Sequence[tuple[str, float]], unit: str, own: str = "nfpkd") -> str:
    """Return a chart with one bar for each label and positive value; labels that begin with *own* stand out."""
    drawn = [(label, value) for label, value in bars if value > 0 and math.isfinite(value)]
    first, last = _decades([value for _, value in drawn])
    step = (_WIDTH - _LABELS - _VALUES) / (last - first)
    bottom = _TOP + len(drawn) * (_BAR + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 24}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text class="t" x="0" y="16">{escape(title)}</text>',
    ]
    for decade in range(first, last + 1):
        x = _LABELS + (decade - first) * step
        parts.append(f'<line class="g" x1="{x:.0f}" x2="{x:.0f}" y1="{_TOP - 8}" y2="{bottom}"/>')
        label = f"{10.0**decade:g} {unit}"
        parts.append(f'<text class="s" x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')
    for index, (label, value) in enumerate(drawn):
        y = _TOP + index * (_BAR + _GAP)
        length = max(2.0, (math.log10(value) - first) * step)
        kind = "o" if label.startswith(own) else "b"
        text = y + _BAR - 6
        parts += [
            f'<text x="{_LABELS - 8}" y="{text}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="3"/>',
            f'<text class="v" x="{_LABELS + length + 6:.1f}" y="{text}">{shown(value)} {escape(unit)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten that *values* lie between; at least one decade."""
    if not values:
        return 0, 1
    first = math.floor(math.log10(min(values)))
    return first, max(first + 1, math.ceil(math.log10(max(values))))
