"""The criterion's contract and the door to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from edgeprune import console
from edgeprune.errors import InputError
from edgeprune.importance.evidence import Evidence
from edgeprune.registry import Registry
from edgeprune.sites import Site

Score: TypeAlias = Callable[[Evidence, Site], Tensor]
"""Importance of every unit of one site: [units], higher stays longer."""

CRITERIA: Registry[Criterion] = Registry("criterion")
DEFAULT = "obs"
NEEDS = ("weights", "data", "gradients", "labels")
"""What criteria need; each needs what stands before it too."""


@dataclass(frozen=True)
class Criterion:
    """One way to rank units.

    Attributes:
        name: as given to ``--criterion``.
        score: scores one site's units.
        needs: one of :data:`NEEDS`.
        across_layers: whether scores of different sites compare.
        where: the sites that it can score, in words.
        applies: whether it can score a site; the default criterion takes over where it cannot.
    """

    name: str
    score: Score
    needs: str
    across_layers: bool
    where: str
    applies: Callable[[Evidence, Site], bool]

    @property
    def summary(self) -> str:
        """What it measures and whose idea it is: the first line of its module, or its own."""
        told = self.score.__globals__["__doc__"] or ""
        name, _, rest = told.strip().partition("\n")[0].partition(": ")
        found = rest if name == self.name else (self.score.__doc__ or "").partition("\n")[0]
        return found.rstrip(".")


def criterion(
    name: str,
    needs: str,
    across_layers: bool,
    where: str = "all",
    applies: Callable[[Evidence, Site], bool] = lambda evidence, site: True,
) -> Callable[[Score], Score]:
    """Register a criterion under its one name; the arguments are :class:`Criterion`'s."""
    assert needs in NEEDS, needs

    def register(score: Score) -> Score:
        CRITERIA.add(name, Criterion(name, score, needs, across_layers, where, applies))
        return score

    return register


def rank_units(evidence: Evidence, name: str = DEFAULT) -> dict[str, tuple[int, ...]]:
    """Every cuttable width site's units, the most important first.

    Raises:
        InputError: no criterion of that name, or it needs labels and there are none.
    """
    chosen = CRITERIA.named(name)
    if chosen.needs == "labels" and evidence.labels is None:
        raise InputError(
            f"criterion '{name}': needs labels, and the task gives none. Return those of the "
            "calibration batches from Task.calibration_labels(), or choose another criterion."
        )
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
