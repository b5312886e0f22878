"""Whole-model plans that are timed: seeded random ones over all axes, and single selections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.cost.blocks import (
    SPAN_TILE,
    TILED_SPAN,
    TILED_TOKENS,
    TILED_UNITS,
    TOKEN_TILE,
    UNIT_TILE,
)
from edgeprune.plan import Plan
from edgeprune.sites import Site, Sites
from edgeprune.sites.length import TokenStream
from edgeprune.sites.parts import spanning_sites, width_sites

DENSE = "dense"
# Shares that the whole-model anchors keep, beside the dense model.
ANCHOR_SHARES = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)
# With more of them a table is rescaled to another device: a dozen whole models in all.
RESCALING_SHARES = (*ANCHOR_SHARES, 0.82, 0.67, 0.52, 0.37, 0.22)
# Selections that are timed: tokens in, tokens kept, as shares of all.
SELECTIONS = ((1, 7 / 8), (1, 1 / 2), (1, 1 / 8), (1 / 2, 3 / 8), (1 / 2, 1 / 8), (1 / 4, 1 / 8))


@dataclass(frozen=True)
class Selection:
    """One selection to be timed: ``keep`` of ``before`` tokens, of ``size`` in the dense model.

    Attributes:
        streams: where; the last one selects ``keep``, one before it brought ``before`` about.
    """

    streams: tuple[TokenStream, ...]
    size: int
    before: int
    keep: int


def random_plan(sites: Sites, rng: np.random.Generator, share: float) -> Plan:
    """A plan that keeps roughly ``share`` of every axis: depth, width and length.

    Args:
        sites: what may be cut.
        rng: the same state gives the same plan.
        share: 0…1; what the plan costs scatters widely around it.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for residual in sites.residuals:
        if rng.random() < 0.5 * (1 - share):
            kept[residual.name] = ()
    stay = [residual for residual in sites.residuals if residual.name not in kept]
    inside = dict.fromkeys(site for residual in stay for site in width_sites(sites, residual))
    inside |= dict.fromkeys(spanning_sites(sites))
    for site in sites.cuttable:
        if site in inside and site.exact and rng.random() < 0.8:
            count = _units(rng, site, share)
            chosen = rng.choice(site.units, count, replace=False)
            kept[site.name] = tuple(sorted(int(unit) for unit in chosen))
    return Plan(sites.program.fingerprint, kept, _tokens(sites, rng, share, kept))


def _units(rng: np.random.Generator, site: Site, share: float) -> int:
    tile = UNIT_TILE if site.units >= TILED_UNITS else 1
    if site.axis == "channels":
        tile = SPAN_TILE if site.units >= TILED_SPAN else 1
    wanted = site.units * rng.uniform(share - 0.3, share + 0.3)
    return int(np.clip(round(wanted / tile) * tile, tile, site.units))


def _tokens(
    sites: Sites, rng: np.random.Generator, share: float, kept: dict[str, tuple[int, ...]]
) -> dict[str, int]:
    tokens: dict[str, int] = {}
    left: dict[object, int] = {}
    for stream in sites.streams:
        size = left.get(stream.tokens, stream.tokens.size)
        possible = stream.why_not is None and stream.residual.name not in kept
        if not possible or rng.random() > 0.6 * (1 - share):
            continue
        tile = TOKEN_TILE if stream.tokens.size >= TILED_TOKENS else 1
        wanted = round(size * rng.uniform(0.4 + 0.4 * share, 1.0) / tile) * tile
        keep = max(wanted, tile, len(stream.pinned))
        if keep < size:
            tokens[stream.name] = left[stream.tokens] = keep
    return tokens


def anchor_plans(
    sites: Sites, seed: int, shares: Sequence[float] = ANCHOR_SHARES
) -> dict[str, Plan]:
    """Point name -> plan, to fit a table to; the dense model is the first."""
    rng = np.random.default_rng([seed, 0xA2C402])
    plans = {DENSE: Plan(sites.program.fingerprint)}
    for share in shares:
        plan = random_plan(sites, rng, share)
        plans[f"plan {replace(plan, program='').hash}"] = plan
    return plans


def selections(sites: Sites) -> list[Selection]:
    """The selections to be timed, at the last two places that can select the same tokens."""
    usable = [stream for stream in sites.streams if stream.why_not is None]
    streams = tuple(stream for stream in usable if stream.tokens is usable[-1].tokens)[-2:]
    found = []
    for shares in SELECTIONS if streams else ():
        size, least = streams[-1].tokens.size, max(1, len(streams[-1].pinned))
        before, keep = (max(least, round(size * share)) for share in shares)
        if keep < before and (before == size or len(streams) == 2):
            found.append(Selection(streams, size, before, keep))
    return found


def selection_plans(sites: Sites) -> dict[str, Plan]:
    """Point name -> plan of those places' attentions alone, with and without each selection."""
    plans = {}
    for choice in selections(sites):
        stay = {stream.residual.name for stream in choice.streams}
        gone = [residual.name for residual in sites.residuals if residual.name not in stay]
        first, last = choice.streams[0].name, choice.streams[-1].name
        tokens = {first: choice.before} if choice.before < choice.size else {}
        for keep in (choice.before, choice.keep):
            selected = tokens | ({last: keep} if keep < choice.before else {})
            plan = Plan(sites.program.fingerprint, dict.fromkeys(gone, ()), selected)
            plans[selection_name(choice.size, choice.before, keep)] = plan
    return plans


def selection_name(size: int, before: int, keep: int) -> str:
    """A selection's point by name; with ``keep == before`` nothing is selected there."""
    return f"selection {size} to {before} to {keep}"
