"""One self-contained page from a report: opens from a file, asks the network for nothing."""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from edgeprune import files
from edgeprune.lower import Lowering
from edgeprune.report import answer, figures, tables
from edgeprune.report.picture import legend, picture, summary
from edgeprune.report.schema import Report


def write_report(report: Report, out: str | os.PathLike[str]) -> Path:
    """Write ``report.json`` and ``report.html`` into the folder ``out``, each whole or not at all.

    What is in them is the report and nothing else; its schema says who keeps the user's paths and
    data out of it.

    Returns:
        The page's path.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    page = render(report)
    report.write(Path(out, "report.json"))
    return files.write_text(Path(out, "report.html"), page)


def render(report: Report) -> str:
    """The page as HTML. Every text from outside is escaped."""
    return _file("page.html").substitute(
        css=_file("page.css").template,
        plotly=get_plotlyjs(),
        status=escape(report.outcome.status),
        verdict=escape(answer.VERDICTS[report.outcome.status]),
        title=escape(report.title),
        headline=escape(answer.headline(report)),
        reason=escape(report.outcome.reason),
        subtitle=escape(_subtitle(report)),
        budget=escape(f"{report.bounds.asked}: {answer.bounds_line(report)}"),
        cards=answer.cards(report),
        summary=escape(summary(report.layers)),
        picture=picture(report.layers),
        legend=legend(report.layers),
        checks=tables.checks(report),
        numbers=tables.numbers(report),
        front=_plot(figures.front(report), "front"),
        certificate=escape(tables.certificate(report)),
        measured=_plot(figures.predicted_and_measured(report), "measured"),
        costs=escape(tables.costs(report)),
        rounds=tables.rounds(report),
        operators=_plot(figures.operators(report), "operators"),
        delegation=tables.delegation(report),
        recovery=_plot(figures.recovery(report), "recovery") if report.recovery else "",
        recovered=tables.recovery(report),
        numerics=tables.numerics(report),
        state=tables.state(report),
        reproduce=tables.reproduce(report),
        stages=tables.stages(report),
        sources=tables.sources(report),
        licence=escape(f"Model licence: {report.licence}. Made by edgeprune."),
    )


def _subtitle(report: Report) -> str:
    target = report.target
    name = target.title if target.soc in target.title else f"{target.title} ({target.soc})"
    lowering = Lowering(
        *(target.precision, target.runtime, target.delegate),  # type: ignore[arg-type]
        accelerator=target.accelerator,
    )
    words = [name, str(lowering)]
    if target.estimated:
        words.append(f"costs are {report.predicted}, none was measured")
    if target.note:
        words.append(target.note)
    return " · ".join((*words, *report.flags))


def _plot(figure: go.Figure | None, name: str) -> str:
    if figure is None:
        return tables.none("Nothing to plot: this build has no such measurement.")
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="plot">{html}</div>'


def _file(name: str) -> Template:
    return Template(resources(__package__).joinpath(name).read_text("utf-8"))
