"""The page of ``edgeprune inspect``: sites, what is behind them, and what cutting them costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from edgeprune import files
from edgeprune.inspect import Row, percent, rows_of, verdict
from edgeprune.report.curves import curves_picture
from edgeprune.report.sheet import sheet
from edgeprune.report.tables import none, table
from edgeprune.report.words import axis_word
from edgeprune.sensitivity import Curve
from edgeprune.weigh import Leaving, Scale

HEADS = ("site", "axis", "units", "weights", "MFLOP", "half: weights", "MFLOP", "can be cut")


def write_sites_page(
    path: str | os.PathLike[str], title: str, scale: Scale, curves: Sequence[Curve] = ()
) -> Path:
    """Write the page, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    return files.write_text(path, sites_page(title, scale, curves))


def sites_page(title: str, scale: Scale, curves: Sequence[Curve] = ()) -> str:
    """The page as HTML."""
    sites, total = scale.sites, scale.total
    rows = rows_of(sites.sites, scale.behind)
    cuttable, every = len(sites.cuttable), len(sites.sites)
    lines = [
        f"{total.parameters:,} weights, {total.flops / 1e6:,.1f} MFLOP per example: matrix "
        "products, convolutions and attention, a multiplication and an addition counted as two."
    ]
    sections = [
        (
            "What can be cut",
            "Behind a site stands what would leave with all its units; then what leaves with half "
            "of them, and of a sub-layer with the whole. Sites overlap: a matrix between two of "
            "them counts for both.",
            table(HEADS, [_row(row, total) for row in rows], right=(2, 3, 4, 5, 6)),
        ),
        ("What cutting costs", _measured_words(curves), _picture(curves)),
        (
            "What moves together",
            "The dimensions of every tensor that lose entries with a unit, and the other sites "
            "that cut the same tensors.",
            "".join(_coupled(row) for row in rows if row.site.weights),
        ),
    ]
    return sheet(title, f"{cuttable} of {every} sites can be cut.", lines, sections)


def _row(row: Row, total: Leaving) -> tuple[str, ...]:
    site, behind = row.site, row.behind
    whole = half = ("", "")
    if behind:
        whole, half = _amounts(behind.whole, total), _amounts(behind.half, total)
    name = f'<span class="name">{escape(row.name).replace(".", ".<wbr>")}</span>'
    units = f"{row.count} × {site.units:,}" if row.count > 1 else f"{site.units:,}"
    return (name, escape(axis_word(site.axis)), units, *whole, *half, escape(verdict(site)))


def _amounts(leaving: Leaving, total: Leaving) -> tuple[str, str]:
    parameters, flops = leaving.parameters, leaving.flops
    return (
        f"{parameters:,} · {percent(parameters, total.parameters)}" if parameters else "",
        f"{flops / 1e6:,.2f} · {percent(flops, total.flops)}" if flops else "",
    )


def _measured_words(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    return (
        "Each site cut alone, nothing else, before anything is: a cell a layer, units leaving from "
        "left to right; a sub-layer removed is a bar. Damage is the outputs' squared movement over "
        "their spread on calibration data. Every line has its own scale."
    )


def _picture(curves: Sequence[Curve]) -> str:
    if not curves:
        return none("Not measured. Run edgeprune inspect with --sensitivity.")
    return f'<div class="scroll">{curves_picture(curves)}</div>'


def _coupled(row: Row) -> str:
    site = row.site
    moved = [(f"<code>{escape(path)}</code>", f"{dimension}") for path, dimension in site.weights]
    shared = ", ".join(row.behind.shares_with) if row.behind else ""
    said = f'<p class="long">Cuts the same tensors as {escape(shared)}.</p>' if shared else ""
    of = f" (as {escape(site.name)})" if row.count > 1 else ""
    summary = f"<summary>{escape(row.name)}{of}: {len(moved)} dimensions</summary>"
    return f"<details>{summary}{table(('tensor', 'dimension'), moved, right=(1,))}{said}</details>"
