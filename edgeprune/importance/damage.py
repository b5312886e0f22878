"""Damage: how far the outputs move when one site alone is cut to one level, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edgeprune import console
from edgeprune.cluster import IN_PROCESS, Cluster
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.readers import refitted_tensors, shown_enough
from edgeprune.plan import Plan
from edgeprune.surgery import apply

Cut: TypeAlias = tuple[str, int]
"""A site, and how many of its units stay."""


@dataclass(frozen=True)
class Damage:
    """Measured output movement, one site at a time; between measured levels it is interpolated.

    Attributes:
        orders: width site -> its units, the most important first.
        width: width site -> {units kept: damage}, with the reader refitted, if the data has twice
            as many rows as it has columns.
        removed: sub-layer -> damage of removing it.
        tokens: tokens site -> {tokens kept: damage}.
    """

    orders: dict[str, tuple[int, ...]]
    width: dict[str, dict[int, float]]
    removed: dict[str, float]
    tokens: dict[str, dict[int, float]]

    def of_width(self, site: str, kept: int) -> float:
        """Damage of keeping the ``kept`` best units."""
        return _interpolate(self.width[site], kept)

    def of_tokens(self, site: str, kept: int) -> float:
        """Damage of letting only ``kept`` tokens go on."""
        return _interpolate(self.tokens[site], kept)

    def best(self, site: str, kept: int) -> tuple[int, ...]:
        """Numbers of the ``kept`` best units, ascending."""
        return tuple(sorted(self.orders[site][:kept]))

    def to_json(self) -> dict[str, Any]:
        """As stored in the build folder."""
        return {
            "orders": {name: list(order) for name, order in self.orders.items()},
            "width": self.width,
            "removed": self.removed,
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Damage:
        """Read what :meth:`to_json` gave."""
        return cls(
            {name: tuple(order) for name, order in body["orders"].items()},
            {name: _levels(levels) for name, levels in body["width"].items()},
            body["removed"],
            {name: _levels(levels) for name, levels in body["tokens"].items()},
        )


def measure_damage(
    evidence: Evidence,
    orders: dict[str, tuple[int, ...]],
    width_levels: Mapping[str, Sequence[int]],
    token_levels: Sequence[int],
    cluster: Cluster = IN_PROCESS,
) -> Damage:
    """Measure every site alone.

    Args:
        evidence: calibration data of the dense program.
        orders: width site -> units, the most important first.
        width_levels: width site -> numbers of kept units to measure.
        token_levels: numbers of kept tokens to measure.
        cluster: where they are measured.
    """
    sites = evidence.sites
    width = {name: {sites.get(name).units: 0.0} for name in width_levels}
    tokens = {s.name: {s.tokens.size: 0.0} for s in sites.streams if s.why_not is None}
    removed = {residual.name: {1: 0.0} for residual in sites.residuals}
    cuts = [
        *((name, kept) for name, levels in width_levels.items() for kept in levels),
        *((name, 0) for name in removed),
        *((s, kept) for s, (whole,) in tokens.items() for kept in token_levels if kept < whole),
    ]
    found = cluster.map(partial(_damage, evidence, orders), cuts)
    every = width | removed | tokens
    with console.progress("measuring damage", total=len(cuts), unit="cuts") as advance:
        for (name, kept), damage in zip(cuts, found, strict=True):
            every[name][kept] = damage
            advance(1, f"{name} {kept}")
    return Damage(orders, width, {name: levels[0] for name, levels in removed.items()}, tokens)


def _damage(evidence: Evidence, orders: Mapping[str, tuple[int, ...]], cut: Cut) -> float:
    """How far the outputs move when one site alone is cut."""
    name, kept = cut
    axis = evidence.sites.get(name).axis
    if axis == "tokens":
        return _fewer_tokens(evidence, name, kept)
    if axis == "sublayer":
        return evidence.movement({evidence.gated.paths[name]: torch.zeros(1)})
    return evidence.movement(_cut_and_refit(evidence, name, orders[name][:kept]))


def _cut_and_refit(evidence: Evidence, name: str, units: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors that stand for one site cut to ``units``: its reader refitted, else its gate."""
    reader = evidence.readers.get(name)
    if reader is None or not shown_enough(evidence.grams[name]):
        factors = torch.zeros(evidence.sites.get(name).units)
        factors[list(units)] = 1.0
        return {evidence.gated.paths[name]: factors}
    tensors = evidence.sites.program.tensors
    return refitted_tensors(tensors, reader, evidence.grams[name], reader.columns(units))


def _fewer_tokens(evidence: Evidence, name: str, keep: int) -> float:
    sites = evidence.sites
    plan = Plan(sites.program.fingerprint, tokens={name: keep})
    return evidence.moved_by(apply(sites.program, plan, sites))


def _interpolate(levels: dict[int, float], kept: int) -> float:
    known = sorted(levels)
    return float(np.interp(kept, known, [levels[k] for k in known]))


def _levels(body: dict[str, float]) -> dict[int, float]:
    return {int(kept): damage for kept, damage in body.items()}
