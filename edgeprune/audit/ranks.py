"""Ranks against a measured oracle: what was expected to matter, and what does."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.stats import spearmanr

from edgeprune import console
from edgeprune.importance import Evidence
from edgeprune.sites import Site

# Units of a wide site that the oracle silences one by one, drawn at random.
MOST_UNITS = 16
# How many of the most damaging sub-layers must be the same on other data.
TOP = 3


@dataclass(frozen=True)
class OracleRank:
    """How well a ranking agrees with the damage of silencing each alone.

    Attributes:
        name: a width site, or "sub-layers".
        measured: how many units the oracle silenced.
        spearman: 1 is the same order, 0 no relation; None where all did the same damage.
    """

    name: str
    measured: int
    spearman: float | None


@dataclass(frozen=True)
class SublayerRanks:
    """Removal damage of every sub-layer, on several disjoint parts of the data.

    Attributes:
        damage: sub-layer -> damage on each part, in the order of the graph.
        jaccard: mean over pairs of parts of how far their three most damaging sub-layers are the
            same; 1 is always the same. None with fewer than two parts or four sub-layers.
    """

    damage: dict[str, tuple[float, ...]]
    jaccard: float | None

    @property
    def mean(self) -> dict[str, float]:
        """Sub-layer -> mean damage over the parts, the most damaging first."""
        means = {name: float(np.mean(found)) for name, found in self.damage.items()}
        return dict(sorted(means.items(), key=lambda item: -item[1]))


def oracle_ranks(
    evidence: Evidence, orders: Mapping[str, Sequence[int]], names: Sequence[str]
) -> tuple[OracleRank, ...]:
    """The criterion's ranks of these width sites against single-unit removal.

    Args:
        evidence: of the dense program.
        orders: width site -> units, the most important first.
        names: the sites to measure.
    """
    found = []
    with console.progress("silencing units one by one", total=len(names), unit="sites") as advance:
        for name in names:
            site = evidence.sites.get(name)
            units = _drawn(site, evidence.seed)
            damage = [_silenced(evidence, site, unit) for unit in units]
            place = {unit: place for place, unit in enumerate(orders[name])}
            expected = [-place[unit] for unit in units]
            found.append(OracleRank(name, len(units), _spearman(expected, damage)))
            advance(1, name)
    return tuple(found)


def sublayer_rank(evidence: Evidence) -> OracleRank | None:
    """First-order estimates of removing each sub-layer against removing it; None without any."""
    names = [residual.name for residual in evidence.sites.residuals]
    if len(names) < 2:
        return None
    estimated = [float(evidence.gate_gradients[name].sum()) for name in names]
    measured = list(sublayer_damage(evidence).values())
    return OracleRank("sub-layers", len(names), _spearman(estimated, measured))


def sublayer_damage(evidence: Evidence) -> dict[str, float]:
    """Sub-layer -> how far the outputs move when it alone is removed."""
    return {
        residual.name: evidence.movement({evidence.gated.paths[residual.name]: torch.zeros(1)})
        for residual in evidence.sites.residuals
    }


def sublayer_ranks(parts: Sequence[Evidence]) -> SublayerRanks:
    """Removal damage measured on every part of the data."""
    found = []
    with console.progress("removing sub-layers", total=len(parts), unit="parts") as advance:
        for part in parts:
            found.append(sublayer_damage(part))
            advance(1)
    damage = {name: tuple(each[name] for each in found) for name in found[0]}
    return SublayerRanks(damage, _agreement(found))


def _agreement(found: Sequence[dict[str, float]]) -> float | None:
    if len(found) < 2 or len(found[0]) <= TOP:
        return None
    tops = [set(sorted(each, key=lambda name: -each[name])[:TOP]) for each in found]
    shares = [len(a & b) / len(a | b) for a, b in combinations(tops, 2)]
    return float(np.mean(shares))


def _drawn(site: Site, seed: int) -> list[int]:
    units = range(site.units)
    return (
        list(units) if site.units <= MOST_UNITS else random.Random(seed).sample(units, MOST_UNITS)
    )


def _silenced(evidence: Evidence, site: Site, unit: int) -> float:
    factors = torch.ones(site.units)
    factors[unit] = 0.0
    return evidence.movement({evidence.gated.paths[site.name]: factors})


def _spearman(expected: Sequence[float], measured: Sequence[float]) -> float | None:
    if len(set(expected)) < 2 or len(set(measured)) < 2:
        return None
    return float(spearmanr(expected, measured).statistic)
