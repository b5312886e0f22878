"""Label setting: carrying the best partial plans through the trellis, block by block.

A label is a partial plan's resources and damage at a token level; of two at the same level the
one that is better in nothing can be forgotten (Martins, EJOR 16(2), 1984). ``Thin`` keeps the
whole front, ``Prune`` only what can still beat a known plan within a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from edgeprune.solve.problem import TOLERANCE, BoolArray, FloatArray, IntArray
from edgeprune.solve.trellis import Stage, Trellis, least_ahead, look_ahead

Moment = Literal["stay", "drop"]
Reduce = Callable[[FloatArray, FloatArray, Moment, int, int], IntArray]


class Labels(NamedTuple):
    """Partial plans at one token level: ``[resources, labels]``, then ``[labels]`` each.

    ``parent`` counts through all labels after the block before.
    """

    resource: FloatArray
    damage: FloatArray
    parent: IntArray
    option: IntArray

    def pick(self, index: IntArray) -> Labels:
        """Some of the labels."""
        return Labels(
            self.resource[:, index], self.damage[index], self.parent[index], self.option[index]
        )


class Trace(NamedTuple):
    """How the labels after one block came about; arrays ``[labels]`` over all levels."""

    parent: IntArray
    option: IntArray
    level_after: IntArray


@dataclass(frozen=True, eq=False)
class Swept:
    """Whole plans: ``[resources, plans]``, ``[plans]``, and ``[plans, blocks]`` twice."""

    resource: FloatArray
    damage: FloatArray
    choices: IntArray
    levels_after: IntArray


def sweep(trellis: Trellis, reduce: Reduce) -> Swept:
    """Carry labels from the first block to the last and add the tail.

    Args:
        trellis: what to walk.
        reduce: ``(resource, damage, moment, block, level) -> indices`` of labels to keep, called
            after a block's options ("stay" or "drop": what becomes of the tokens next) and
            again ("stay") where labels from several levels meet.
    """
    first = np.zeros(1, dtype=np.int64)
    current = {0: Labels(np.zeros((len(trellis.base), 1)), np.zeros(1), first, first)}
    traces: list[Trace] = []
    for index, stage in enumerate(trellis.stages):
        current = _advance(current, stage, index, reduce)
        traces.append(_trace(current))
    return _finish(trellis, current, traces)


class Thin:
    """Keeps the non-dominated labels; beyond ``cap``, the least damaging one per resource bin.

    Kept labels are real partial plans with their own resource, not a bin's edge, so thinning
    costs variety, never correctness. ``exact`` says whether it happened.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.exact = True

    def __call__(
        self, resources: FloatArray, damage: FloatArray, moment: Moment, block: int, level: int
    ) -> IntArray:
        """The labels to keep; there is one resource."""
        resource = resources[0]
        if not self.exact and len(resource) > 2 * self.cap:
            return self._one_per_bin(resource, damage)
        kept = pareto(resource, damage)
        if len(kept) <= self.cap:
            return kept
        self.exact = False
        return kept[self._one_per_bin(resource[kept], damage[kept])]

    def _one_per_bin(self, resource: FloatArray, damage: FloatArray) -> IntArray:
        least, most = float(resource.min()), float(resource.max())
        scale = self.cap / (most - least) if most > least else 0.0
        bins = np.minimum(((resource - least) * scale).astype(np.int64), self.cap - 1)
        best = np.full(self.cap, np.inf)
        np.minimum.at(best, bins, damage)
        winners = np.flatnonzero(damage == best[bins])
        chosen = np.full(self.cap, -1)
        chosen[bins[winners]] = winners
        # The cheapest label stays whatever it damages: else a tight budget would look infeasible.
        index = np.append(chosen[chosen >= 0], resource.argmin())
        return index[pareto(resource[index], damage[index])]


class Prune:
    """Keeps the labels that may still become a plan within ``room`` better than ``limit``.

    A label's bound is its damage, plus what the relaxation says is ahead at the best of several
    prices. Beyond ``cap`` those with the lowest bounds stay; ``dropped_bound`` is the lowest
    bound among the rest: no plan lost through them does less damage.

    Args:
        trellis: what will be swept.
        prices: ``[prices, resources]``, the most telling first.
        room: ``[resources]``, the budget less the trellis's base.
        limit: the damage to beat.
        cap: the most labels per token level.
    """

    def __init__(
        self, trellis: Trellis, prices: FloatArray, room: FloatArray, limit: float, cap: int
    ) -> None:
        ahead, cheapest = look_ahead(trellis, prices), least_ahead(trellis)
        self.ahead = {"stay": ahead.stay, "drop": ahead.drop}
        self.cheapest = {"stay": cheapest.stay, "drop": cheapest.drop}
        self.prices = prices
        self.room = room
        self.limit = limit
        self.cap = cap
        self.dropped_bound = np.inf

    def __call__(
        self, resource: FloatArray, damage: FloatArray, moment: Moment, block: int, level: int
    ) -> IntArray:
        """The labels to keep."""
        left = self.room[:, None] - resource
        fits = (left >= self.cheapest[moment][:, block, level, None]).all(axis=0)
        alive = np.flatnonzero(fits & np.isfinite(damage))
        bound = np.full(len(alive), -np.inf)
        for prices, ahead in zip(self.prices, self.ahead[moment][:, block, level], strict=True):
            bound = np.maximum(bound, damage[alive] - prices @ left[:, alive] + ahead)
            hopeful = bound < self.limit
            alive, bound = alive[hopeful], bound[hopeful]
        if len(resource) == 1:
            kept = pareto(resource[0, alive], damage[alive])
            alive, bound = alive[kept], bound[kept]
        if len(alive) > self.cap:
            order = bound.argsort(kind="stable")
            self.dropped_bound = min(self.dropped_bound, float(bound[order[self.cap]]))
            alive = alive[order[: self.cap]]
        return alive


def pareto(resource: FloatArray, damage: FloatArray) -> IntArray:
    """Indices of the non-dominated pairs, by rising resource; one of equal pairs."""
    order = resource.argsort(kind="stable")
    if not len(order):
        return order
    ordered = damage[order]
    least = np.minimum.accumulate(ordered)
    better = np.append(np.isfinite(ordered[0]), ordered[1:] < least[:-1])
    kept = order[better]
    same = np.append(np.diff(resource[kept]) == 0, False)
    return kept[~same] if len(kept) else kept


def within(swept: Swept, budget: float) -> int | None:
    """The least damaging plan with at most ``budget`` of the resource, the cheapest of equals."""
    resource = swept.resource[0]
    fitting = np.flatnonzero(resource <= budget * (1 + TOLERANCE))
    if not len(fitting):
        return None
    order = np.lexsort((resource[fitting], swept.damage[fitting]))
    return int(fitting[order[0]])


def _advance(
    current: dict[int, Labels], stage: Stage, index: int, reduce: Reduce
) -> dict[int, Labels]:
    """Run one block from every level, drop tokens where possible, and merge what meets."""
    arriving: dict[int, list[Labels]] = {}
    offset = 0
    for level, labels in current.items():
        stayed = _run(stage, labels, offset, level, np.True_, "stay", index, reduce)
        arriving.setdefault(level, []).append(stayed)
        if stage.step_damage is not None and np.isfinite(stage.step_damage[level]).any():
            gone = _run(stage, labels, offset, level, stage.may_select, "drop", index, reduce)
            for target in np.flatnonzero(np.isfinite(stage.step_damage[level])).tolist():
                shifted = gone._replace(
                    resource=gone.resource + stage.step_resource[:, level, target, None],
                    damage=gone.damage + stage.step_damage[level, target],
                )
                arriving.setdefault(target, []).append(shifted)
        offset += len(labels.damage)
    merged = {}
    for level in sorted(arriving):
        group = arriving[level]
        labels = Labels(*(np.concatenate(part, axis=-1) for part in zip(*group, strict=True)))
        if len(group) > 1:
            labels = labels.pick(reduce(labels.resource, labels.damage, "stay", index, level))
        if len(labels.damage):
            merged[level] = labels
    return merged


def _run(
    stage: Stage,
    labels: Labels,
    offset: int,
    level: int,
    allowed: np.bool_ | BoolArray,
    moment: Moment,
    index: int,
    reduce: Reduce,
) -> Labels:
    """Every label with every worthwhile option of the block, reduced."""
    usable = np.where(allowed, stage.damage[:, level], np.inf)
    options = _worthwhile(stage.resource[:, :, level], usable)
    resource = stage.resource[:, options, level, None] + labels.resource[:, None, :]
    resource = resource.reshape(len(resource), -1)
    damage = np.add.outer(usable[options], labels.damage).ravel()
    kept = reduce(resource, damage, moment, index, level)
    row, column = np.divmod(kept, len(labels.damage))
    return Labels(resource[:, kept], damage[kept], offset + column, options[row])


def _worthwhile(resource: FloatArray, damage: FloatArray) -> IntArray:
    """The options that no other one dominates, or simply the usable ones for many resources."""
    return pareto(resource[0], damage) if len(resource) == 1 else np.flatnonzero(damage < np.inf)


def _trace(current: dict[int, Labels]) -> Trace:
    nothing = np.zeros(0, dtype=np.int64)
    levels = [np.full(len(labels.damage), level) for level, labels in current.items()]
    return Trace(
        np.concatenate([nothing, *(labels.parent for labels in current.values())]),
        np.concatenate([nothing, *(labels.option for labels in current.values())]),
        np.concatenate([nothing, *levels]),
    )


def _finish(trellis: Trellis, current: dict[int, Labels], traces: list[Trace]) -> Swept:
    """Add tail and base, and read the plans off the traces."""
    resource = [np.zeros((len(trellis.base), 0))]
    resource += [
        labels.resource + trellis.tail[:, level, None] for level, labels in current.items()
    ]
    damage = np.concatenate([np.zeros(0), *(labels.damage for labels in current.values())])
    choices, levels_after = _walk_back(traces, np.arange(len(damage)))
    total = np.concatenate(resource, axis=1) + trellis.base[:, None]
    return Swept(total, damage, choices, levels_after)


def _walk_back(traces: list[Trace], index: IntArray) -> tuple[IntArray, IntArray]:
    """``[plans, blocks]`` options and levels after, following parents from the last block."""
    choices = np.empty((len(index), len(traces)), dtype=np.int64)
    levels_after = np.empty_like(choices)
    for block in range(len(traces) - 1, -1, -1):
        trace = traces[block]
        choices[:, block] = trace.option[index]
        levels_after[:, block] = trace.level_after[index]
        index = trace.parent[index]
    return choices, levels_after
