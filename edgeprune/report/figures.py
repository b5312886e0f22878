"""The page's plots. Colours read on light and on dark paper alike."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import Any

import plotly.graph_objects as go

from edgeprune.report.schema import Candidate, FrontPoint, Report
from edgeprune.report.words import digits

PRUNED, DENSE, TRIED, BAD = "#12907f", "#8d97a8", "#c98a1b", "#cf4b58"
GRID, TEXT = "rgba(128,136,150,0.20)", "#79839a"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'
MOST_OPERATORS = 10


def front(report: Report) -> go.Figure | None:
    """Latency against damage: the solver's front, and the plans that were tried for real."""
    points = report.front.points
    if not points:
        return None
    plain = sorted((p for p in points if not p.candidate), key=lambda p: p.latency_ms)
    figure = go.Figure()
    figure.add_scatter(
        x=[p.latency_ms for p in plain],
        y=[p.damage for p in plain],
        mode="lines+markers" if len(plain) <= 40 else "lines",
        name="Pareto front",
        line={"color": DENSE, "width": 2},
        marker={"size": 5},
        hovertemplate="%{x:.3g} ms, damage %{y:.3g}<extra></extra>",
    )
    _plans(figure, [p for p in points if p.candidate and not p.chosen], "tried", TRIED, 9)
    _plans(figure, [p for p in points if p.chosen], "chosen", PRUNED, 15)
    if report.bounds.latency_ms is not None:
        figure.add_vline(
            x=report.bounds.latency_ms,
            line={"color": BAD, "dash": "dot", "width": 1.5},
            annotation={"text": "budget", "font": {"color": BAD}, "yanchor": "top"},
        )
    return _styled(figure, f"latency, ms ({report.predicted})", "damage (predicted)", 360)


def _plans(figure: go.Figure, points: list[FrontPoint], name: str, colour: str, size: int) -> None:
    if not points:
        return
    figure.add_scatter(
        x=[p.latency_ms for p in points],
        y=[p.damage for p in points],
        mode="markers",
        name=name,
        marker={
            "size": size,
            "color": colour,
            "symbol": "star" if name == "chosen" else "circle",
            "line": {"color": "#fff", "width": 1},
        },
        text=["no score" if p.score is None else f"score {p.score:.4g}" for p in points],
        hovertemplate=f"{name}: %{{x:.3g}} ms, damage %{{y:.3g}}, %{{text}}<extra></extra>",
    )


def predicted_and_measured(report: Report) -> go.Figure | None:
    """Every tried plan's predicted latency against the measured one; None without a device."""
    rounds = [
        [(c, c.measured_ms) for c in candidates if c.measured_ms is not None]
        for candidates in report.turns.values()
    ]
    both = [ms for each in rounds for c, measured in each for ms in (c.predicted_ms, measured)]
    if not both:
        return None
    span = [0.96 * min(both), 1.04 * max(both)]
    figure = go.Figure()
    figure.add_scatter(
        x=[*span, span[1], span[0]],
        y=[0.95 * span[0], 0.95 * span[1], 1.05 * span[1], 1.05 * span[0]],
        fill="toself",
        mode="none",
        fillcolor="rgba(128,136,150,0.13)",
        name="within 5%",
        hoverinfo="skip",
    )
    for number, each in enumerate(rounds, 1):
        _round(figure, each, number, len(rounds))
    if report.bounds.latency_ms is not None:
        figure.add_hline(
            y=report.bounds.latency_ms,
            line={"color": BAD, "dash": "dot", "width": 1.5},
            annotation={"text": "budget", "font": {"color": BAD}, "xanchor": "right", "x": 1},
        )
    return _styled(figure, "predicted, ms", "measured, ms", 360)


def _round(
    figure: go.Figure, tried: list[tuple[Candidate, float]], number: int, count: int
) -> None:
    """One round's plans, paler the earlier it was."""
    opacity = 0.35 + 0.65 * number / count
    for chosen in (False, True):
        some = [(c, measured) for c, measured in tried if c.chosen is chosen]
        if not some:
            continue
        figure.add_scatter(
            x=[c.predicted_ms for c, _ in some],
            y=[measured for _, measured in some],
            mode="markers",
            name="chosen" if chosen else f"round {number}",
            opacity=opacity,
            marker={
                "size": 15 if chosen else 10,
                "symbol": "star" if chosen else "circle",
                "color": PRUNED if chosen else TRIED,
                "line": {"color": "#fff", "width": 1},
            },
            hovertemplate="predicted %{x:.3g} ms, measured %{y:.3g} ms<extra></extra>",
        )


def operators(report: Report) -> go.Figure | None:
    """Time per kind of operator before and after; None without a device."""
    times: dict[str, dict[str, float]] = defaultdict(lambda: {"dense": 0.0, "pruned": 0.0})
    for which in ("dense", "pruned"):
        for each in getattr(report.operators, which):
            word = each.name if each.delegated else f"{each.name} · CPU"
            times[word][which] += each.ms
    if not times:
        return None
    order = sorted(times, key=lambda op: max(times[op].values()), reverse=True)
    shown = {escape(op): times[op] for op in order[:MOST_OPERATORS]}
    if rest := order[MOST_OPERATORS:]:
        word = f"{len(rest)} more kinds"
        shown[word] = {m: sum(times[op][m] for op in rest) for m in ("dense", "pruned")}
    names = list(shown)[::-1]
    figure = go.Figure()
    for model, colour in (("pruned", PRUNED), ("dense", DENSE)):
        values = [shown[op][model] for op in names]
        figure.add_bar(
            y=names,
            x=values,
            name=model,
            orientation="h",
            marker={"color": colour},
            text=[digits(each, 2) for each in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"{model}: %{{x:.3g}} ms<extra>%{{y}}</extra>",
        )
    figure.update_layout(barmode="group", bargap=0.35, legend={"traceorder": "reversed"})
    return _styled(figure, "ms per run (measured)", "", 96 + 40 * len(names))


def recovery(report: Report) -> go.Figure | None:
    """Distillation loss by step; None when there was no distillation."""
    if report.recovery is None or not report.recovery.curve:
        return None
    steps, losses = zip(*report.recovery.curve, strict=True)
    figure = go.Figure()
    figure.add_scatter(
        x=steps,
        y=losses,
        mode="lines",
        line={"color": PRUNED, "width": 1},
        opacity=0.35,
        name="each step",
        hovertemplate="step %{x}: %{y:.3g}<extra></extra>",
    )
    figure.add_scatter(
        x=steps,
        y=_smoothed(losses),
        mode="lines",
        line={"color": PRUNED, "width": 2.5},
        name="smoothed",
        hoverinfo="skip",
    )
    return _styled(figure, "step", "training loss", 320)


def _smoothed(values: tuple[float, ...]) -> list[float]:
    """Running mean over a twentieth of the curve."""
    decay = 1 - 1 / max(2, len(values) // 20)
    mean, found = values[0], []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        found.append(mean)
    return found


def _styled(figure: go.Figure, x: str, y: str, height: int) -> go.Figure:
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "title": {"font": {"size": 12.5}},
    }
    figure.update_layout(
        height=height,
        margin={"l": 12, "r": 24, "t": 40, "b": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12.5, "color": TEXT},
        hoverlabel={"font": {"family": FONT, "size": 12.5}},
        showlegend=True,
    )
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    figure.update_xaxes(**axis, title_text=x)
    figure.update_yaxes(**axis, title_text=y)
    return figure
