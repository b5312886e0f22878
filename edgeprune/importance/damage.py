"""Damage: how far the outputs move when one site alone is cut to one level, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune import console
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.readers import refitted_tensors
from edgeprune.plan import Plan
from edgeprune.program.program import as_tuple
from edgeprune.surgery import apply


@dataclass(frozen=True)
class Damage:
    """Measured output movement, one site at a time; between measured levels it is interpolated.

    Attributes:
        orders: width site -> its units, the most important first.
        width: width site -> {units kept: damage}, with the reader refitted.
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
) -> Damage:
    """Measure every site alone.

    Args:
        evidence: calibration data of the dense program.
        orders: width site -> units, the most important first.
        width_levels: width site -> numbers of kept units to measure.
        token_levels: numbers of kept tokens to measure.
    """
    sites = evidence.sites
    streams = [s for s in sites.streams if s.why_not is None]
    counts = {s.name: [t for t in token_levels if t < s.tokens.size] for s in streams}
    cuts = (*width_levels.values(), sites.residuals, *counts.values())
    total = sum(len(each) for each in cuts)
    with console.progress("measuring damage", total=total, unit="cuts") as advance:

        def noted(damage: float, what: str) -> float:
            advance(1, what)
            return damage

        width = {
            name: {sites.get(name).units: 0.0}
            | {
                k: noted(_fewer_units(evidence, name, orders[name][:k]), f"{name} {k}")
                for k in levels
            }
            for name, levels in width_levels.items()
        }
        removed = {
            r.name: noted(evidence.movement({evidence.gated.paths[r.name]: torch.zeros(1)}), r.name)
            for r in sites.residuals
        }
        tokens = {
            s.name: {s.tokens.size: 0.0}
            | {
                k: noted(_fewer_tokens(evidence, s.name, k), f"{s.name} {k}")
                for k in counts[s.name]
            }
            for s in streams
        }
    return Damage(orders, width, removed, tokens)


def _fewer_units(evidence: Evidence, name: str, units: tuple[int, ...]) -> float:
    return evidence.movement(_cut_and_refit(evidence, name, units))


def _cut_and_refit(evidence: Evidence, name: str, units: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors that stand for one site cut to ``units``: its reader refitted, else its gate."""
    reader = evidence.readers.get(name)
    if reader is None:
        factors = torch.zeros(evidence.sites.get(name).units)
        factors[list(units)] = 1.0
        return {evidence.gated.paths[name]: factors}
    tensors = evidence.sites.program.tensors
    columns = reader.columns(units)
    new = refitted_tensors(tensors, reader, evidence.grams[name], columns)
    whole = torch.zeros_like(tensors[reader.weight])
    whole[:, columns] = new[reader.weight]
    return new | {reader.weight: whole}


def _fewer_tokens(evidence: Evidence, name: str, keep: int) -> float:
    sites = evidence.sites
    program = apply(sites.program, Plan(sites.program.fingerprint, tokens={name: keep}), sites)
    with torch.no_grad():
        return evidence.moved(as_tuple(program(*batch)) for batch in evidence.batches)


def _interpolate(levels: dict[int, float], kept: int) -> float:
    known = sorted(levels)
    return float(np.interp(kept, known, [levels[k] for k in known]))


def _levels(body: dict[str, float]) -> dict[int, float]:
    return {int(kept): damage for kept, damage in body.items()}
