"""Sensitivity: how far the outputs move when one site alone is cut, before anything is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from edgeprune.importance import DEFAULT, Evidence, measure_damage, rank_units
from edgeprune.inspect import name_width, rows_by
from edgeprune.plan import Plan
from edgeprune.sites import Site, Sites
from edgeprune.sites.sizes import nearest_size
from edgeprune.surgery import apply
from edgeprune.task import Batch

SHARES = (0.75, 0.5, 0.25)
"""Of a site's units, how many stay where it is measured; of a sub-layer, none."""


@dataclass(frozen=True)
class Curve:
    """One site's damage, the further it is cut.

    Attributes:
        site: what is cut, all else whole.
        points: (units kept, damage), the most units first; damage is the outputs' squared
            movement over their spread, so that 1 is as bad as the mean output for all examples.
    """

    site: Site
    points: tuple[tuple[int, float], ...]

    def at(self, share: float) -> float | None:
        """Damage where so many of the units stay; None where it was not measured."""
        if self.site.kind == "depth" and share:
            return None
        kept = _kept(self.site, share) if share else 0
        return next((damage for units, damage in self.points if units == kept), None)

    @property
    def worst(self) -> float:
        """Damage of the furthest cut."""
        return self.points[-1][1]


def measure_sensitivity(
    sites: Sites, batches: Sequence[Batch], criterion: str = DEFAULT, seed: int = 0
) -> tuple[Curve, ...]:
    """Measure every site that can be cut, each alone.

    Args:
        sites: of the dense program.
        batches: calibration inputs without labels.
        criterion: decides which units go first; the reader is refitted where there is one.
        seed: for criteria that draw.

    Raises:
        InputError: no criterion of that name, or no output that could move.
    """
    evidence = Evidence(sites, batches, seed)
    width = [site for site in sites.cuttable if site.name in sites.atoms]
    levels = {site.name: sorted({_kept(site, share) for share in SHARES}) for site in width}
    levels = {name: [k for k in kept if k < sites.get(name).units] for name, kept in levels.items()}
    tokens = {_kept(s, share) for s in sites.cuttable if s.axis == "tokens" for share in SHARES}
    damage = measure_damage(evidence, rank_units(evidence, criterion), levels, sorted(tokens))
    removed = {name: {1: 0.0, 0: found} for name, found in damage.removed.items()}
    measured = {**damage.width, **damage.tokens, **removed, **_by_surgery(evidence)}
    return tuple(
        Curve(site, tuple(sorted(measured[site.name].items(), reverse=True)))
        for site in sites.cuttable
        if site.name in measured
    )


def _by_surgery(evidence: Evidence) -> dict[str, dict[int, float]]:
    """Input lengths and ranks of tables, each alone: surgery itself cuts them."""
    sites = evidence.sites
    found: dict[str, dict[int, float]] = {}
    for site in sites.cuttable:
        if site.kind == "rank" or site.name in sites.lengths:
            found[site.name] = {site.units: 0.0}
            for kept in _possible(sites, site):
                cut = apply(sites.program, _plan(sites, site, kept), sites)
                found[site.name][kept] = evidence.moved_by(cut)
    return found


def _possible(sites: Sites, site: Site) -> set[int]:
    """Near ``SHARES`` of the units: sizes that the inputs can have, ranks that spare weights."""
    wanted = {_kept(site, share) for share in SHARES}
    if site.kind == "rank":
        (path, _), _ = site.weights
        table = sites.program.tensors[path]
        return {rank for rank in wanted if rank * sum(table.shape) < table.numel()}
    dims = sites.lengths[site.name].dims
    return {size for each in wanted if (size := nearest_size(sites.flow, dims, each)) is not None}


def _plan(sites: Sites, site: Site, kept: int) -> Plan:
    numbers = {site.name: kept}
    if site.kind == "rank":
        return Plan(sites.program.fingerprint, rank=numbers)
    return Plan(sites.program.fingerprint, length=numbers)


def sensitivity_table(curves: Sequence[Curve]) -> Table:
    """Layers that are alike on one line: the least and the most damage of them."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    by_name = {curve.site.name: curve for curve in curves}
    rows = rows_by((curve.site for curve in curves), lambda site: site.axis)
    table.add_column("damage of", overflow="fold", width=name_width(row.name for row in rows))
    for title in (*(f"{share:.0%} kept" for share in SHARES), "removed"):
        table.add_column(title, justify="right")
    for row in rows:
        alike = [by_name[site.name] for site in row.sites]
        cells = [_span([curve.at(share) for curve in alike]) for share in (*SHARES, 0.0)]
        table.add_row(row.name, *cells)
    return table


def most_damage(curves: Sequence[Curve], count: int = 3) -> str:
    """The sites whose furthest cut moves the outputs most, in one line."""
    worst = sorted(curves, key=lambda curve: -curve.worst)[:count]
    return ", ".join(f"{curve.site.name} ({curve.worst:.2g})" for curve in worst)


def _kept(site: Site, share: float) -> int:
    return max(round(site.units * share), len(site.pinned), 1)


def _span(damages: Sequence[float | None]) -> str:
    known = [damage for damage in damages if damage is not None]
    if not known:
        return ""
    least, most = f"{min(known):.2g}", f"{max(known):.2g}"
    return least if least == most else f"{least}…{most}"
