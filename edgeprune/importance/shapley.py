"""shapley: what a unit's arrival spares the task's loss, over all orders (Held & Yang 2023).

Units that harm the task come out negative. Orders of arrival are drawn at random, and each is left
as soon as the units that are there do nearly as well as all (truncated Monte Carlo: Ghorbani & Zou
2019, "Data Shapley").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence, task_loss
from edgeprune.sites import Site

# Sets that are tried per site, the same for few units and many: 16 orders for 32, fewer for more
# would say little.
SETS = 512
MOST_UNITS = 32
# An order is left when all that is still missing is worth less than this share.
TRUNCATED_AT = 0.01


@criterion(
    "shapley",
    needs="labels",
    across_layers=True,
    where=f"sites of up to {MOST_UNITS} units",
    applies=lambda evidence, site: site.units <= MOST_UNITS,
)
def shapley(evidence: Evidence, site: Site) -> Tensor:
    """Mean loss that each unit's arrival spares: [units]; they sum to what all units spare."""
    labels, path = evidence.labels, evidence.gated.paths[site.name]
    assert labels is not None

    def worth(there: Tensor) -> float:
        answers = zip(evidence.replay.run({path: there}), labels, strict=True)
        return -sum(float(task_loss(outputs, truth)) * len(truth) for outputs, truth in answers)

    generator = torch.Generator().manual_seed(evidence.seed)
    orders = max(1, SETS // site.units)
    return shapley_values(worth, site.units, generator, orders) / sum(map(len, labels))


def shapley_values(
    worth: Callable[[Tensor], float],
    players: int,
    generator: torch.Generator,
    orders: int,
    truncated_at: float = TRUNCATED_AT,
) -> Tensor:
    """Monte Carlo estimate of Shapley's values: [players].

    Args:
        worth: of a set of players, given as [players] of 1 (there) and 0 (not there).
        players: how many there are.
        generator: of the orders of arrival.
        orders: how many are drawn.
        truncated_at: what is missing, as a share of the whole, that is not followed up.
    """
    known: dict[tuple[float, ...], float] = {}  # few players meet in the same sets again

    def of(there: Tensor) -> float:
        members = tuple(there.tolist())
        if members not in known:
            known[members] = worth(there)
        return known[members]

    values = torch.zeros(players, dtype=torch.float64)
    nobody, everybody = of(torch.zeros(players)), of(torch.ones(players))
    enough = truncated_at * abs(everybody - nobody)
    for _ in range(orders):
        there, before = torch.zeros(players), nobody
        for player in torch.randperm(players, generator=generator).tolist():
            there[player] = 1.0
            now = of(there)
            values[player] += now - before
            before = now
            if abs(everybody - now) < enough:
                break
    return values / orders
