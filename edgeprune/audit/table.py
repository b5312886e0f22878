"""An audit for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from edgeprune.audit.audit import Audit, Worth

MEASURES = ("damage", "refit_damage", "score", "refit_score")
TOO_FEW_SEEDS = (
    "The random twins lie so far apart that no plan could pass: a bound is below 0. Give more "
    "--seeds."
)
TITLES = {
    "damage": "damage",
    "refit_damage": "damage, refit",
    "score": "score",
    "refit_score": "score, refit",
}


def twins_table(found: Audit) -> Table:
    """The plan beside its random and worst twins."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("at the same cost")
    shown = measures(found)
    for measure in shown:
        table.add_column(TITLES[measure], justify="right")
    table.add_row("the plan", *(f"{getattr(found.worth, m):.3g}" for m in shown))
    spread = (spread_of(found.random, m) for m in shown)
    table.add_row(f"random, {len(found.random)} seeds", *(f"{a:.3g} ± {s:.2g}" for a, s in spread))
    table.add_row("worst", *(f"{getattr(found.worst, m):.3g}" for m in shown))
    return table


def measures(found: Audit) -> tuple[str, ...]:
    """Fields of :class:`Worth` that were measured."""
    return tuple(m for m in MEASURES if getattr(found.worth, m) is not None)


def spread_of(twins: Sequence[Worth], measure: str) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    values = [getattr(each, measure) for each in twins]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def sentences(found: Audit) -> Iterator[str]:
    """What was found, a line each."""
    yield equality_line(found)
    for claim in found.claims:
        word = "better than random" if claim.better else "not told apart from random: no claim"
        yield f"{TITLES[claim.measure]}: {word} ({claim.plan:.3g}, bound {claim.bound:.3g})"
    if any(claim.hopeless for claim in found.claims):
        yield TOO_FEW_SEEDS
    for rank in found.ranks:
        value = "–" if rank.spearman is None else f"{rank.spearman:.2f}"
        yield f"{rank.name}: Spearman {value} with removal one by one ({rank.measured} measured)"
    if found.sublayers is not None:
        top = ", ".join(list(found.sublayers.mean)[:3])
        agreement = found.sublayers.jaccard
        stable = "" if agreement is None else f"; the same three on other data: {agreement:.2f}"
        yield f"sub-layers that matter most: {top}{stable}"


def equality_line(found: Audit) -> str:
    """Whether masked equals removed, and where that was not checked."""
    if not found.equality:
        return "masked equals removed: not checked, masking stands for none of the plan's cuts"
    word = "masked equals removed" if found.holds else "MASKED IS NOT REMOVED"
    parts = ", ".join(f"{e.difference:.1e} in {e.dtype}" for e in found.equality)
    rest = f"; not checked: {', '.join(found.unmasked)}" if found.unmasked else ""
    return f"{word}: {parts}{rest}"
