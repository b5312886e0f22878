"""The solver's question: blocks with options, token levels between them, and the bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Sums of the same numbers in another order differ by about 1e-15 relative; a plan is not refused
# for that.
TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Block:
    """One sub-layer (attention or feed-forward), in order of depth, and the ways to run it.

    Token levels are positions in ``Problem.token_levels``; a higher level has fewer tokens.

    Attributes:
        name: shown in messages.
        options: a label for each way to run the block, e.g. "12 heads", "none".
        damage: ``[options]``, additive, at least 0.
        latency_ms: ``[options, levels]``, at the level with which the block runs.
        weight_mb: ``[options]``.
        activation_mb: ``[options, levels]``, transient memory while the block runs.
        select_damage: ``[levels, levels]``, from row to column, of dropping tokens right after
            this block; only column > row is read; ``inf`` forbids a step; the diagonal is 0.
            None: tokens cannot be dropped here.
        select_latency_ms: ``[levels, levels]`` of that step; given exactly when
            ``select_damage`` is.
        select_needs: ``[options]``, the options after which tokens can be dropped (an attention
            that is cut away gives no scores); None: all.

    Raises:
        InputError: a shape is wrong, or a value is NaN, infinite or negative.
    """

    name: str
    options: tuple[str, ...]
    damage: FloatArray
    latency_ms: FloatArray
    weight_mb: FloatArray
    activation_mb: FloatArray
    select_damage: FloatArray | None = None
    select_latency_ms: FloatArray | None = None
    select_needs: BoolArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise InputError(f"block '{self.name}': has no options; give at least the uncut one")
        latency = np.asarray(self.latency_ms, dtype=np.float64)
        if latency.ndim != 2:
            raise InputError(
                f"block '{self.name}': latency_ms has shape {latency.shape}, "
                "wanted [options, token levels]"
            )
        count, levels = len(self.options), latency.shape[1]
        self._check("damage", (count,))
        self._check("latency_ms", (count, levels))
        self._check("weight_mb", (count,))
        self._check("activation_mb", (count, levels))
        self._check_selection(count, levels)

    @property
    def levels(self) -> int:
        """How many token levels the block's tables cover."""
        return int(self.latency_ms.shape[1])

    @property
    def may_select(self) -> BoolArray:
        """``[options]``: after which options tokens can be dropped."""
        if self.select_damage is None:
            return np.zeros(len(self.options), dtype=np.bool_)
        if self.select_needs is None:
            return np.ones(len(self.options), dtype=np.bool_)
        return self.select_needs

    @property
    def possible_steps(self) -> BoolArray:
        """``[levels, levels]``: from row to column, where tokens can be dropped at all."""
        if self.select_damage is None or self.select_latency_ms is None:
            return np.zeros((self.levels, self.levels), dtype=np.bool_)
        finite = np.isfinite(self.select_damage) & np.isfinite(self.select_latency_ms)
        return np.triu(finite & self.may_select.any(), 1)

    def _check(self, field: str, shape: tuple[int, ...]) -> None:
        object.__setattr__(
            self, field, _numbers(f"block '{self.name}'", field, getattr(self, field), shape)
        )

    def _check_selection(self, count: int, levels: int) -> None:
        where = f"block '{self.name}'"
        if (self.select_damage is None) != (self.select_latency_ms is None):
            raise InputError(f"{where}: give select_damage and select_latency_ms both, or neither")
        for name in ("select_damage", "select_latency_ms"):
            table = getattr(self, name)
            if table is not None:
                checked = _step_table(where, name, table, levels)
                object.__setattr__(self, name, checked)
        if self.select_needs is None:
            return
        needs = np.asarray(self.select_needs)
        if needs.shape != (count,) or needs.dtype != np.bool_:
            raise InputError(
                f"{where}: select_needs is {needs.dtype}{list(needs.shape)}, wanted bool[{count}]"
            )
        object.__setattr__(self, "select_needs", needs)


@dataclass(frozen=True, eq=False)
class Product:
    """A part of the model whose cost several blocks' choices multiply.

    Every share is a row of (milliseconds, activations, weights), from 0 to 1.

    Attributes:
        name: shown in messages.
        owner: the block whose option and token level the base depends on; None: it is constant,
            and the tables have one row and one column.
        latency_ms: ``[options, levels]``.
        weight_mb: ``[options]``.
        held_mb, alive_mb: ``[options, levels]``, memory while it runs: what no share changes,
            and what they multiply.
        shares: block -> ``[options, 3]``.

    Raises:
        InputError: a shape is wrong, or a value is NaN, infinite or negative.
    """

    name: str
    owner: int | None
    latency_ms: FloatArray
    weight_mb: FloatArray
    held_mb: FloatArray
    alive_mb: FloatArray
    shares: Mapping[int, FloatArray]

    def __post_init__(self) -> None:
        where = f"product '{self.name}'"
        shape = np.shape(self.latency_ms)
        for name, wanted in (("latency_ms", shape), ("held_mb", shape), ("alive_mb", shape)):
            object.__setattr__(self, name, _numbers(where, name, getattr(self, name), wanted))
        weight = _numbers(where, "weight_mb", self.weight_mb, shape[:1])
        object.__setattr__(self, "weight_mb", weight)

    def base(self, choices: IntArray, levels: IntArray) -> tuple[FloatArray, ...]:
        """``[plans]`` each: latency, weight, memory held and alive, before the shares."""
        nothing = np.zeros(len(choices), dtype=np.int64)
        option = nothing if self.owner is None else choices[:, self.owner]
        level = nothing if self.owner is None else levels[:, self.owner]
        tables = (self.latency_ms, self.held_mb, self.alive_mb)
        latency, held, alive = (table[option, level] for table in tables)
        return latency, self.weight_mb[option], held, alive

    def left(self, choices: IntArray) -> FloatArray:
        """``[plans, 3]``: all shares multiplied."""
        found = np.ones((len(choices), 3))
        for place, shares in self.shares.items():
            found = found * shares[choices[:, place]]
        return found


@dataclass(frozen=True, eq=False)
class Problem:
    """A model as the solver sees it: blocks in order of depth, run at level 0 to begin with.

    Attributes:
        token_levels: tokens carried at each level, strictly falling; level 0 = all.
        blocks: in order of depth.
        fixed_latency_ms: of everything outside the blocks that no choice changes.
        fixed_weight_mb: likewise.
        fixed_activation_mb: peak transient memory outside the blocks.
        tail_latency_ms: ``[levels]``, what runs after the last block at the last level; None = 0.
        products: on top of the blocks, parts whose costs several of their choices multiply.

    Raises:
        InputError: a shape is wrong, a value is NaN or negative, or the levels do not fall.
    """

    token_levels: tuple[int, ...]
    blocks: tuple[Block, ...]
    fixed_latency_ms: float = 0.0
    fixed_weight_mb: float = 0.0
    fixed_activation_mb: float = 0.0
    tail_latency_ms: FloatArray | None = None
    products: tuple[Product, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_levels", tuple(int(level) for level in self.token_levels))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        levels = self.token_levels
        if not levels or any(a <= b for a, b in zip(levels, levels[1:], strict=False)):
            raise InputError(f"token_levels {levels}: wanted at least one, strictly falling")
        if not self.blocks:
            raise InputError("the problem has no blocks; there is nothing to choose")
        for block in self.blocks:
            if block.levels != len(levels):
                raise InputError(
                    f"block '{block.name}': tables cover {block.levels} token levels, "
                    f"the problem has {len(levels)}"
                )
        for name in ("fixed_latency_ms", "fixed_weight_mb", "fixed_activation_mb"):
            value = float(_numbers("problem", name, getattr(self, name), ()))
            object.__setattr__(self, name, value)
        if self.tail_latency_ms is not None:
            tail = _numbers("problem", "tail_latency_ms", self.tail_latency_ms, (len(levels),))
            object.__setattr__(self, "tail_latency_ms", tail)
        for product in self.products:
            self._check_product(product)

    def _check_product(self, product: Product) -> None:
        """Its tables are as large as the blocks' that they depend on."""
        where, owner = f"product '{product.name}'", product.owner
        wanted = (1, 1) if owner is None else self.blocks[owner].latency_ms.shape
        if product.latency_ms.shape != wanted:
            raise InputError(
                f"{where}: latency_ms has shape {product.latency_ms.shape}, wanted {wanted}"
            )
        for place, shares in product.shares.items():
            rows = (len(self.blocks[place].options), 3)
            if _numbers(where, f"shares of block {place}", shares, rows).max() > 1:
                raise InputError(f"{where}: shares of block {place} exceed 1")

    @property
    def tail(self) -> FloatArray:
        """``[levels]``: the tail's latency, zeros where none was given."""
        if self.tail_latency_ms is None:
            return np.zeros(len(self.token_levels))
        return self.tail_latency_ms


@dataclass(frozen=True)
class Bounds:
    """Upper bounds; None = free.

    Attributes:
        said: bound -> what its numbers are multiplied with in messages, where the user knows them
            in another unit, or before a correction.
        unread_mb: what is taken off the peak memory before that.

    Raises:
        InputError: a bound is not a positive number.
    """

    latency_ms: float | None = None
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    said: Mapping[str, float] = field(default_factory=dict, compare=False)
    unread_mb: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not np.isfinite(value) or value <= 0:
                raise InputError(f"bound {name}: got {value}, wanted a positive number")
            object.__setattr__(self, name, float(value))

    def given(self) -> dict[str, float]:
        """The bounds that are set, by field name."""
        every = {name: getattr(self, name) for name in ("latency_ms", "peak_memory_mb", "size_mb")}
        return {name: value for name, value in every.items() if value is not None}

    def in_words(self, name: str, value: float) -> float:
        """A value of one bound as the user knows it."""
        less = self.unread_mb if name == "peak_memory_mb" else 0.0
        return (value - less) * self.said.get(name, 1.0)

    def allow(self, point: FrontPoint) -> bool:
        """Whether ``point`` meets every bound, up to floating-point noise."""
        return all(fits(getattr(point, name), bound) for name, bound in self.given().items())


@dataclass(frozen=True)
class FrontPoint:
    """One whole plan with what it is predicted to cost.

    Attributes:
        choices: the option of each block.
        levels: the token level with which each block runs; the first is 0; never falls.
        levels_after: the token level after each block; what the next one runs with.
        latency_ms, peak_memory_mb, size_mb, damage: predicted.
    """

    choices: tuple[int, ...]
    levels: tuple[int, ...]
    levels_after: tuple[int, ...]
    latency_ms: float
    peak_memory_mb: float
    size_mb: float
    damage: float

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> FrontPoint:
        """The inverse of ``dataclasses.asdict``, also after a trip through JSON text."""
        sequences = {key: tuple(body[key]) for key in ("choices", "levels", "levels_after")}
        return cls(**body | sequences)


def fits(value: float, bound: float) -> bool:
    """Whether ``value`` is at most ``bound``, up to floating-point noise."""
    return value <= bound + TOLERANCE * abs(bound)


def evaluate(problem: Problem, choices: Sequence[int], levels_after: Sequence[int]) -> FrontPoint:
    """Price one plan; see ``evaluate_all``.

    Args:
        problem: the tables.
        choices: an option per block.
        levels_after: the token level after each block.
    """
    return evaluate_all(problem, np.asarray([choices]), np.asarray([levels_after]))[0]


def evaluate_all(
    problem: Problem, choices: IntArray, levels_after: IntArray
) -> tuple[FrontPoint, ...]:
    """Price plans: the definition that every solver is held to.

    Args:
        problem: the tables.
        choices: ``[plans, blocks]``, the option of each block.
        levels_after: ``[plans, blocks]``, the token level after each block.

    Raises:
        InputError: a plan has the wrong length, brings tokens back, or drops them where that is
            not possible.
    """
    wanted = (len(choices), len(problem.blocks))
    if choices.shape != wanted or levels_after.shape != wanted:
        raise InputError(
            f"plan: choices {choices.shape} and levels_after {levels_after.shape}, "
            f"wanted {wanted}: one of each per block"
        )
    levels = np.hstack([np.zeros_like(levels_after[:, :1]), levels_after[:, :-1]])
    latency = np.full(len(choices), problem.fixed_latency_ms)
    damage = np.zeros(len(choices))
    weight = np.full(len(choices), problem.fixed_weight_mb)
    activation = np.full(len(choices), problem.fixed_activation_mb)
    for index, block in enumerate(problem.blocks):
        option, here, after = choices[:, index], levels[:, index], levels_after[:, index]
        latency += block.latency_ms[option, here]
        damage += block.damage[option]
        weight += block.weight_mb[option]
        activation = np.maximum(activation, block.activation_mb[option, here])
        drops = here != after
        if not drops.any():
            continue
        if (after < here).any() or not block.may_select[option[drops]].all():
            raise InputError(
                f"plan: block '{block.name}': token levels go from {here[drops][0]} to "
                f"{after[drops][0]} after option '{block.options[option[drops][0]]}'; not possible"
            )
        assert block.select_damage is not None and block.select_latency_ms is not None
        damage += np.where(drops, block.select_damage[here, after], 0.0)
        latency += np.where(drops, block.select_latency_ms[here, after], 0.0)
    for product in problem.products:
        base_ms, base_mb, held, alive = product.base(choices, levels)
        share_ms, share_alive, share_mb = product.left(choices).T
        latency += base_ms * share_ms
        weight += base_mb * share_mb
        activation = np.maximum(activation, held + alive * share_alive)
    latency += problem.tail[levels_after[:, -1]]
    costs = np.stack([latency, weight + activation, weight, damage], axis=1)
    plans = zip(
        choices.tolist(), levels.tolist(), levels_after.tolist(), costs.tolist(), strict=True
    )
    return tuple(
        FrontPoint(tuple(chosen), tuple(here), tuple(after), *cost)
        for chosen, here, after, cost in plans
    )


def _numbers(where: str, field: str, value: object, shape: tuple[int, ...]) -> FloatArray:
    """``value`` as finite, non-negative float64 of ``shape``."""
    array = _floats(where, field, value)
    if array.shape != shape:
        raise InputError(f"{where}: {field} has shape {array.shape}, wanted {shape}")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{where}: {field}{list(at) or ''} is {array[at]}, wanted a finite number of at least 0"
        )
    return array


def _step_table(where: str, field: str, value: object, levels: int) -> FloatArray:
    """A ``[levels, levels]`` table whose upper triangle is non-negative and diagonal zero."""
    table = _floats(where, field, value)
    if table.shape != (levels, levels):
        raise InputError(f"{where}: {field} has shape {table.shape}, wanted {(levels, levels)}")
    if np.any(np.diagonal(table) != 0):
        raise InputError(f"{where}: {field} has a non-zero diagonal; keeping all tokens is free")
    upper = table[np.triu_indices(levels, 1)]
    if np.isnan(upper).any() or (upper < 0).any():
        raise InputError(f"{where}: {field} has NaN or negative values above its diagonal")
    return table


def _floats(where: str, field: str, value: object) -> FloatArray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {field} is not an array of numbers ({error})") from error
