"""Twins: plans that cost what a plan costs and keep other units.

Prasanna et al. 2020, "When BERT plays the lottery": what a plan is worth shows only beside random
and worst plans of the same size.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from edgeprune.plan import Plan
from edgeprune.sites import Site, Sites

Choose = Callable[[Site, int], tuple[int, ...]]
"""(width site, how many) -> numbers of the units to keep."""
Order = Callable[[Sequence[str]], Sequence[str]]
"""Sub-layers or layers that are alike -> the same, those to remove first."""


def random_twin(sites: Sites, plan: Plan, seed: int) -> Plan:
    """As many units of every site, drawn at random."""
    draw = random.Random(seed)
    return _twin(
        sites,
        plan,
        lambda site, count: tuple(sorted(draw.sample(range(site.units), count))),
        lambda names: draw.sample(names, len(names)),
    )


def worst_twin(
    sites: Sites,
    plan: Plan,
    orders: Mapping[str, Sequence[int]],
    removed: Mapping[str, float],
) -> Plan:
    """As many units of every site, those that the criterion would cut first.

    Args:
        sites: of the program.
        plan: whose cost is kept.
        orders: width site -> units, the most important first.
        removed: sub-layer or layer -> damage of removing it alone.
    """
    return _twin(
        sites,
        plan,
        lambda site, count: tuple(sorted(orders[site.name][-count:])),
        lambda names: sorted(names, key=lambda name: -removed.get(name, 0.0)),
    )


def _twin(sites: Sites, plan: Plan, choose: Choose, order: Order) -> Plan:
    kept: dict[str, tuple[int, ...]] = {}
    for name, units in plan.kept.items():
        site = sites.get(name)
        if site.kind == "width":  # which ids a vocabulary keeps is the user's choice, in twins too
            kept[name] = units if site.opt_in else choose(site, len(units))
    for group in _groups(sites, plan):
        count = sum(name in plan.kept for name in group)
        kept |= dict.fromkeys(order(group)[:count], ())
    return replace(plan, kept=kept)


def _groups(sites: Sites, plan: Plan) -> list[list[str]]:
    """Removed sub-layers and layers, each among those that could stand for it at the same cost:
    of the same shape, and whole in the plan."""
    touched = _touched(sites, plan)
    groups: dict[object, list[str]] = {}
    for site in sites.cuttable:
        if site.kind == "depth" and (site.name in plan.kept or site.name not in touched):
            pattern = re.sub(r"\d+", "#", site.name)
            groups.setdefault((site.axis, pattern, site.parameters), []).append(site.name)
    return [group for group in groups.values() if any(name in plan.kept for name in group)]


def _touched(sites: Sites, plan: Plan) -> set[str]:
    """Sub-layers and layers in which the plan cuts, selects tokens, or removes a part or all."""
    found = {s.residual.name for s in sites.streams if s.name in plan.tokens}
    cut = [set(_paths(sites.get(name))) for name in plan.kept if name in sites.atoms]
    for residual in sites.residuals:
        own = set(residual.weights)
        if any(paths <= own for paths in cut) or {residual.name, residual.layer} & set(plan.kept):
            found.add(residual.name)
    parts = {layer.name: {part.name for part in layer.sublayers} for layer in sites.layers}
    return found | {name for name, names in parts.items() if names & found}


def _paths(site: Site) -> list[str]:
    return [path for path, _ in site.weights]
