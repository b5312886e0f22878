"""The criterion's contract and the door to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from edgeprune import console
from edgeprune.importance.evidence import Evidence
from edgeprune.registry import Registry
from edgeprune.sites import Site

Score: TypeAlias = Callable[[Evidence, Site], Tensor]
"""Importance of every unit of one site: [units], higher stays longer."""

CRITERIA: Registry[Criterion] = Registry("criterion")
DEFAULT = "obs"


@dataclass(frozen=True)
class Criterion:
    """One way to rank units.

    Attributes:
        name: as given to ``--criterion``.
        score: scores one site's units.
        needs: "weights", "data" or "gradients".
        across_layers: whether scores of different sites compare.
        applies: whether it can score a site; the default criterion takes over where it cannot.
    """

    name: str
    score: Score
    needs: str
    across_layers: bool
    applies: Callable[[Evidence, Site], bool]


def criterion(
    name: str,
    needs: str,
    across_layers: bool,
    applies: Callable[[Evidence, Site], bool] = lambda evidence, site: True,
) -> Callable[[Score], Score]:
    """Register a criterion under its one name."""

    def register(score: Score) -> Score:
        CRITERIA.add(name, Criterion(name, score, needs, across_layers, applies))
        return score

    return register


def rank_units(evidence: Evidence, name: str = DEFAULT) -> dict[str, tuple[int, ...]]:
    """Every cuttable width site's units, the most important first.

    Raises:
        InputError: no criterion of that name.
    """
    chosen = CRITERIA.named(name)
    sites = [site for site in evidence.sites.cuttable if site.kind == "width"]
    orders: dict[str, tuple[int, ...]] = {}
    with console.progress(f"ranking units by {name}", total=len(sites), unit="sites") as advance:
        for site in sites:
            used = chosen if chosen.applies(evidence, site) else CRITERIA[DEFAULT]
            if not used.applies(evidence, site):
                used = CRITERIA["taylor_fo"]
            scores = used.score(evidence, site)
            order = torch.argsort(scores, descending=True, stable=True)
            orders[site.name] = tuple(int(unit) for unit in order)
            advance(1)
    return orders
