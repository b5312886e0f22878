"""One self-contained page from ``report.json``: opens from a file, asks the network for nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from edgeprune import files
from edgeprune.report import figures
from edgeprune.report.picture import picture

WORDS = {
    "met": "budget met",
    "over_budget": "over budget",
    "below_score": "below the score floor",
    "not_faster": "refused: not faster than dense",
    "not_measured": "not measured",
    "wrong_numerics": "wrong numerics",
}


def write_report(report: dict[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder; returns the page's path."""
    files.write_json(Path(folder, "report.json"), "report", report)
    return files.write_text(Path(folder, "report.html"), render(report))


def render(report: dict[str, Any]) -> str:
    """The page as HTML. Every text from outside is escaped."""
    template = Template(resources(__package__).joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        plotly=get_plotlyjs(),
        title=escape(report["title"]),
        subtitle=escape(_subtitle(report)),
        status=escape(report["status"]),
        verdict=escape(WORDS[report["status"]]),
        reason=escape(report["reason"]),
        cards="".join(_cards(report)),
        picture=picture(report["layers"]),
        front=_plot(figures.front(report), "front"),
        certificate=escape(_certificate(report["certificate"])),
        measured=_plot(figures.predicted_and_measured(report), "measured"),
        rounds=_rounds(report["rounds"]),
        operators=_plot(figures.operators(report), "operators"),
        recovery=_plot(figures.recovery(report), "recovery"),
        checks=_checks(report["checks"]),
        delegation=_delegation(report["delegation"]),
        state=_pairs(report["state"] or {"device": "not at hand: nothing was measured"}),
        sources=_sources(report["profile"]["provenance"]),
        reproduce=_pairs(report["reproduce"]),
        stages=_stages(report["stages"]),
        licence=escape(report["licence"]),
    )


def _subtitle(report: dict[str, Any]) -> str:
    profile = report["profile"]
    words = [
        profile["title"],
        f"{profile['runtime']} + {profile['delegate']}",
        profile["precision"],
    ]
    if report["estimated"]:
        words.append("all costs estimated, none measured")
    if profile["note"]:
        words.append(profile["note"])
    return " · ".join((*words, f"budget {report['budget']['asked']}"))


def _cards(report: dict[str, Any]) -> Iterable[str]:
    dense, pruned = report["dense"], report["pruned"]
    word = "estimated" if report["estimated"] else "median, measured"
    bound = report["budget"]["latency_ms"]
    note = word + (f"; budget {bound:.3g} ms" if bound is not None else "")
    yield _card("latency", dense.get("latency_ms"), pruned.get("latency_ms"), "ms", note)
    yield _card(
        "peak memory", dense.get("memory_mb"), pruned.get("memory_mb"), "MB", word.split(",")[-1]
    )
    yield _card("file", dense.get("size_mb"), pruned.get("size_mb"), "MB", "on disk")
    yield _card(report["score_name"], dense["score"], pruned["score"], "", _score_note(report))


def _score_note(report: dict[str, Any]) -> str:
    parts = []
    if report["interval"]:
        low, high = (100 * end for end in report["interval"])
        parts.append(f"{low:+.2f} to {high:+.2f} points against dense (paired 95%)")
    if report["cosine"] is not None:
        parts.append(f"mean cosine to dense {report['cosine']:.3f}")
    return "; ".join(parts) or "on the test split"


def _card(name: str, dense: float | None, pruned: float | None, unit: str, note: str) -> str:
    longest = max(dense or 0, pruned or 0) or 1
    bars = "".join(
        f'<div class="bar {kind}"><i style="width:{100 * (value or 0) / longest:.1f}%"></i>'
        f"<b>{_number(value)} {unit}</b><span>{kind}</span></div>"
        for kind, value in (("dense", dense), ("pruned", pruned))
    )
    ratio = f"<em>{100 * pruned / dense:.0f}%</em>" if dense and pruned else ""
    return f'<div class="card"><h3>{escape(name)}{ratio}</h3>{bars}<p>{escape(note)}</p></div>'


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _certificate(certificate: dict[str, Any]) -> str:
    exact = "exact optimum" if certificate["exact"] else f"gap {certificate['gap_pct']:.2f}%"
    note = f" {certificate['note']}" if certificate["note"] else ""
    return (
        f"{certificate['solver']}: {exact} of the stated problem in "
        f"{certificate['seconds']:.2f} s; binding: {certificate['binding']}.{note}"
    )


def _plot(figure: go.Figure | None, name: str) -> str:
    if figure is None:
        return '<p class="none">nothing to show in this build</p>'
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )
    return html


def _rounds(rounds: list[dict[str, Any]]) -> str:
    rows = [
        (
            str(number),
            f"{each['correction']:.3f}",
            _number(c["predicted_ms"]),
            _number(c["measured_ms"]),
            f"{c['damage']:.4g}",
            "" if c["score"] is None else f"{c['score']:.4g}",
            "chosen" if c["chosen"] else "",
        )
        for number, each in enumerate(rounds, 1)
        for c in each["candidates"]
    ]
    heads = ("round", "correction", "predicted ms", "measured ms", "damage", "score", "")
    return _table(heads, rows)


def _checks(checks: list[dict[str, Any]]) -> str:
    marks = {True: "passed", False: "FAILED", None: "–"}
    rows = [
        (c["name"], marks[c["passed"]], _cell(c["got"]), _cell(c["wanted"]), c["note"])
        for c in checks
    ]
    return _table(("check", "", "got", "wanted", "note"), rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _delegation(delegation: dict[str, Any]) -> str:
    rows = [(text, str(count)) for text, count in delegation["why_not"].items()]
    share = f"{delegation['delegated']} of {delegation['operators']} operators are delegated."
    return f"<p>{share}</p>" + _table(("left on the CPU, and why", "times"), rows)


def _sources(provenance: dict[str, dict[str, str]]) -> str:
    rows = [(path, note["origin"], note["source"]) for path, note in provenance.items()]
    return _table(("number", "origin", "source"), rows)


def _stages(stages: list[dict[str, Any]]) -> str:
    rows = [(s["name"], f"{s['seconds']:.0f} s", "resumed" if s["resumed"] else "") for s in stages]
    return _table(("stage", "time", ""), rows)


def _pairs(values: dict[str, Any]) -> str:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += [(f"{key}: {inner}", str(text)) for inner, text in value.items()]
        elif value is not None:
            flat.append((key.replace("_", " "), str(value)))
    return _table((), flat)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
