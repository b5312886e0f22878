"""The page's plots. Colours read on light and on dark paper alike."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

DENSE, PRUNED, MUTED = "#8a94a6", "#0f9d7a", "#b9c0cc"
MOST_OPERATORS = 10
GRID = "rgba(128,136,150,0.22)"


def front(report: dict[str, Any]) -> go.Figure:
    """Latency against damage: the solver's front, and the plans that were tried for real."""
    points = report["front"]
    figure = go.Figure()
    figure.add_scatter(
        x=[p["latency_ms"] for p in points],
        y=[p["damage"] for p in points],
        mode="lines",
        name="Pareto front (predicted)",
        line={"color": DENSE, "width": 2},
    )
    tried = [c for each in report["rounds"] for c in each["candidates"]]
    for chosen, name, size in ((False, "candidates", 9), (True, "chosen", 14)):
        some = [c for c in tried if c["chosen"] is chosen]
        figure.add_scatter(
            x=[c["measured_ms"] or c["predicted_ms"] for c in some],
            y=[c["damage"] for c in some],
            mode="markers",
            name=name,
            marker={"size": size, "color": PRUNED if chosen else MUTED},
            text=[f"score {c['score']:.4g}" if c["score"] is not None else "" for c in some],
        )
    bound = report["budget"]["latency_ms"]
    if bound is not None:
        figure.add_vline(
            x=bound, line={"color": "#d1495b", "dash": "dash"}, annotation_text="budget"
        )
    return _styled(figure, "latency, ms", "predicted damage", 360)


def predicted_and_measured(report: dict[str, Any]) -> go.Figure | None:
    """Every candidate's predicted latency against the measured one; None without a device."""
    tried = [c for each in report["rounds"] for c in each["candidates"] if c["measured_ms"]]
    if not tried:
        return None
    both = [c[key] for c in tried for key in ("predicted_ms", "measured_ms")]
    span = [0.96 * min(both), 1.04 * max(both)]
    figure = go.Figure()
    figure.add_scatter(
        x=span, y=span, mode="lines", name="equal", line={"color": MUTED, "dash": "dot"}
    )
    figure.add_scatter(
        x=[c["predicted_ms"] for c in tried],
        y=[c["measured_ms"] for c in tried],
        mode="markers",
        name="plans",
        marker={"size": 11, "color": [PRUNED if c["chosen"] else DENSE for c in tried]},
    )
    return _styled(figure, "predicted, ms", "measured, ms", 360)


def operators(report: dict[str, Any]) -> go.Figure | None:
    """Time per kind of operator before and after; None without a device."""
    times: dict[str, dict[str, float]] = {}
    for model, rows in report["operators"].items():
        for row in rows:
            entry = times.setdefault(row["op"], {"dense": 0.0, "pruned": 0.0})
            entry[model] += row["ms"]
    if not times:
        return None
    top = sorted(times, key=lambda op: max(times[op].values()), reverse=True)[:MOST_OPERATORS][::-1]
    figure = go.Figure()
    for model, colour in (("pruned", PRUNED), ("dense", DENSE)):
        figure.add_bar(
            y=top,
            x=[times[op][model] for op in top],
            name=model,
            orientation="h",
            marker={"color": colour},
        )
    figure.update_layout(barmode="group", legend={"traceorder": "reversed"})
    return _styled(figure, "ms per run", "", 60 + 38 * len(top))


def recovery(report: dict[str, Any]) -> go.Figure | None:
    """Distillation loss by step; None when there was no distillation."""
    if report["recovery"] is None:
        return None
    curve = report["recovery"]["curve"]
    figure = go.Figure()
    figure.add_scatter(
        x=[step for step, _ in curve],
        y=[loss for _, loss in curve],
        mode="lines",
        line={"color": PRUNED},
        name="loss",
    )
    return _styled(figure, "step", "distance to dense outputs", 300)


def _styled(figure: go.Figure, x: str, y: str, height: int) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 16, "t": 44, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#7c8698"},
        legend=figure.layout.legend.update(
            {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
        ),
    )
    figure.update_xaxes(title=x, gridcolor=GRID, zeroline=False)
    figure.update_yaxes(title=y, gridcolor=GRID, zeroline=False)
    return figure
