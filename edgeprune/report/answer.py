"""The first screen: was the budget met, and dense against pruned in ms, MB and score."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from edgeprune.report.schema import Comparison, Number, Report
from edgeprune.report.words import UNKNOWN, digits, number, percent, points, with_unit

VERDICTS = {
    "met": "Budget met",
    "over_budget": "Over budget",
    "below_score": "Below the score floor",
    "not_faster": "Refused: not faster than dense",
    "not_measured": "Not measured",
    "wrong_numerics": "Wrong numerics",
    "fell_back": "Refused: operators fell back from the accelerator to the CPU",
}


def headline(report: Report) -> str:
    """The verdict as one sentence with numbers."""
    dense, pruned = report.dense.p50_ms, report.pruned.p50_ms
    verdict = VERDICTS[report.outcome.status]
    if pruned is None:
        return f"{verdict}."
    article = "An" if pruned.provenance[0] in "aeiou" else "A"
    word = f"{article} {pruned.provenance} " if pruned.estimated else ""
    costs = f"{word}{with_unit(pruned.value, 'ms')}"
    if dense is None or not dense.value:
        return f"{verdict}. {costs}."
    faster = dense.value / pruned.value if pruned.value else 0.0
    return f"{verdict}. {costs} instead of {digits(dense.value)}: {faster:.2f}× as fast."


def cards(report: Report) -> str:
    """Latency, peak memory, file size, score."""
    dense, pruned, bounds = report.dense, report.pruned, report.bounds
    memory = (dense.peak_memory_mb, pruned.peak_memory_mb)
    return "".join(
        (
            _cost("latency, p50", "ms", dense.p50_ms, pruned.p50_ms, _latency_bound(report)),
            _cost("peak memory", "MB", *memory, bounds.peak_memory_mb),
            _cost("file size", "MB", dense.size_mb, pruned.size_mb, bounds.size_mb),
            _score(report),
        )
    )


def bounds_line(report: Report) -> str:
    """The budget as asked, and in numbers."""
    bounds = report.bounds
    tail = "latency" if bounds.percentile == 50 else f"p{bounds.percentile} latency"
    pairs = (
        (tail, bounds.latency_ms, "ms"),
        ("peak memory", bounds.peak_memory_mb, "MB"),
        ("file", bounds.size_mb, "MB"),
    )
    parts = [f"{name} ≤ {with_unit(v, unit)}" for name, v, unit in pairs if v is not None]
    if bounds.min_score is not None:
        parts.append(f"{report.score_name} ≥ {digits(bounds.min_score, 4)}")
    text = ", ".join(parts)
    return f"{text} (of a dense model that is {report.predicted})" if bounds.estimated else text


def _latency_bound(report: Report) -> float | None:
    """The bound, where it is on the median that the card shows."""
    return report.bounds.latency_ms if report.bounds.percentile == 50 else None


def _cost(
    name: str, unit: str, dense: Number | None, pruned: Number | None, bound: float | None
) -> str:
    both = [each.value for each in (dense, pruned) if each is not None]
    longest = max((*both, bound or 0.0), default=0.0) or 1.0
    over = bound is not None and pruned is not None and pruned.value > bound
    bars = "".join(
        _bar(kind, each, longest, bound) for kind, each in (("dense", dense), ("pruned", pruned))
    )
    ratio = f"{percent(pruned.value, dense.value)} of dense" if dense and pruned else ""
    notes = [] if bound is None else [f"budget {with_unit(bound, unit)}"]
    notes += dict.fromkeys(each.provenance for each in (pruned, dense) if each)
    return (
        f'<article class="card{" over" if over else ""}"><h3>{escape(name)}<b>{ratio}</b></h3>'
        f'<p class="big">{_big(pruned, unit)}</p>'
        f'<p class="against">dense <b>{number(dense, unit)}</b></p>'
        f"{bars}<p class=note>{escape(' · '.join(notes) or 'not measured')}</p></article>"
    )


def _big(value: Number | None, unit: str) -> str:
    if value is None:
        return f'<span class="none">{UNKNOWN}</span><i>not measured</i>'
    mark = f'<small class="est">{escape(value.provenance)}</small>' if value.estimated else ""
    return f"{digits(value.value)}<i>{unit}</i>{mark}"


def _bar(kind: str, value: Number | None, longest: float, bound: float | None) -> str:
    share = 100 * value.value / longest if value else 0.0
    tick = "" if bound is None else f'<u style="left:{min(100 * bound / longest, 99.6):.1f}%"></u>'
    hatched = " guess" if value is not None and value.estimated else ""
    return f'<div class="bar {kind}{hatched}"><i style="width:{share:.1f}%"></i>{tick}</div>'


def _score(report: Report) -> str:
    dense, pruned, comparison = report.dense.score, report.pruned.score, report.comparison
    floor = report.bounds.min_score
    over = floor is not None and pruned is not None and pruned.value < floor
    difference = f"{points(comparison.difference_points)} points" if comparison else ""
    big = digits(pruned.value, 4) if pruned else f'<span class="none">{UNKNOWN}</span>'
    tail = "" if pruned else "<i>not measured</i>"
    before = digits(dense.value, 4) if dense else UNKNOWN
    return (
        f'<article class="card{" over" if over else ""}">'
        f"<h3>{escape(report.score_name)}<b>{difference}</b></h3>"
        f'<p class="big">{big}{tail}</p>'
        f'<p class="against">dense <b>{before}</b></p>'
        f"{_whisker(comparison)}<p class=note>{escape(_score_note(report))}</p></article>"
    )


def _score_note(report: Report) -> str:
    parts = ["test split"]
    if report.bounds.min_score is not None:
        parts.append(f"floor {digits(report.bounds.min_score, 4)}")
    comparison = report.comparison
    if comparison and comparison.interval_points:
        low, high = map(points, comparison.interval_points)
        count = f", {comparison.examples:,} examples" if comparison.examples else ""
        parts.append(f"paired 95%: {low} to {high} points{count}")
    if comparison and comparison.cosine is not None:
        parts.append(f"cosine to dense {comparison.cosine:.3f}")
    return " · ".join(parts) if report.pruned.score else "not measured"


def _whisker(comparison: Comparison | None) -> str:
    """The interval of the difference on a line, with dense as its zero."""
    if comparison is None or comparison.interval_points is None:
        return ""
    low, high = comparison.interval_points
    reach = 1.25 * (max(abs(low), abs(high)) or 1.0)
    at = {name: 110 + 100 * value / reach for name, value in (("low", low), ("high", high))}
    middle = 110 + 100 * comparison.difference_points / reach
    return "".join(_whisker_parts(at["low"], at["high"], middle))


def _whisker_parts(low: float, high: float, middle: float) -> Iterator[str]:
    yield '<svg class="whisker" viewBox="0 0 220 40" aria-hidden="true">'
    yield '<line class="zero" x1="110" x2="110" y1="3" y2="26"/><text x="110" y="38">dense</text>'
    yield '<line class="axis" x1="4" x2="216" y1="15" y2="15"/>'
    yield f'<line class="span" x1="{low:.1f}" x2="{high:.1f}" y1="15" y2="15"/>'
    yield f'<circle cx="{middle:.1f}" cy="15" r="5.5"/></svg>'
