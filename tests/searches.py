"""A search that needs no device: a small BERT, estimated costs, made-up damages."""

from __future__ import annotations

from pathlib import Path

from models import TOKENS, inputs, sites

from edgeprune.budget import AbsoluteBudget
from edgeprune.cost import estimate_costs
from edgeprune.formulate import choices_of, token_levels
from edgeprune.importance import Damage
from edgeprune.lower import Lowering
from edgeprune.profile import Multiples, load_profile
from edgeprune.search import Search
from edgeprune.task import Task


def estimated_search(task: Task, lowering: Lowering) -> Search:
    """The question at half the estimated latency."""
    found = sites("bert")
    multiples = Multiples(heads=1, ffn=8, tokens=1)
    table = estimate_costs(found, load_profile("pixel8"), lowering)
    widths = [site for site in found.cuttable if site.kind == "width"]
    damage = Damage(
        orders={site.name: tuple(range(site.units)) for site in widths},
        width={site.name: {site.units: 0.0, 1: 0.4} for site in widths},
        removed={residual.name: 0.7 for residual in found.residuals},
        tokens={stream.name: {TOKENS: 0.0, 1: 0.9} for stream in found.streams},
    )
    return Search(
        *(found, choices_of(found, multiples), token_levels(found, multiples), damage, table),
        bounds=AbsoluteBudget(table.dense_ms / 2, None, None, None, 50),
        task=task,
        calibration=[inputs("bert", 16, 1)],
        lowering=lowering,
        device=None,
        dense=None,
        folder=Path(),
    )
