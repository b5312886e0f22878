"""How numbers and names read on the page."""

from __future__ import annotations

import math
from html import escape

from edgeprune.report.schema import Number

UNKNOWN = "–"
AXES = {"heads": "heads", "kv_groups": "kv groups", "ffn": "neurons", "channels": "channels"}


def digits(value: float | None, significant: int = 3) -> str:
    """Three digits that matter, never an exponent; a dash for what is not known."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value and abs(value) < 1e-4:
        return f"{value:.1e}"
    places = significant - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{value:,.{min(max(places, 0), 6)}f}".replace("-", "−")


def trimmed(value: float | None) -> str:
    """Four digits that matter, without the zeros behind them: for a number beside its limit."""
    text = digits(value, 4)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def with_unit(value: float | None, unit: str) -> str:
    """``digits`` and the unit; kept on one line."""
    return f"{digits(value)}\N{NO-BREAK SPACE}{unit}" if value is not None else UNKNOWN


def points(value: float) -> str:
    """A signed difference of scores, in points."""
    return f"{value:+.2f}".replace("-", "−")


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole``."""
    return f"{100 * part / whole:.0f}%" if whole else UNKNOWN


def axis_word(axis: str | None) -> str:
    """What the units of a site are called."""
    return AXES.get(axis, axis.replace("_", " ")) if axis else ""


def number(value: Number | None, unit: str = "") -> str:
    """As HTML: the number with a mark where it is an estimate, its provenance on hover."""
    if value is None:
        return f'<span class="none" title="not measured">{UNKNOWN}</span>'
    mark = f' <small class="est">{escape(value.provenance)}</small>' if value.estimated else ""
    text = escape(with_unit(value.value, unit) if unit else digits(value.value, 4))
    return f'<span title="{escape(value.provenance)}">{text}</span>{mark}'
