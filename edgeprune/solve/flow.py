"""The problem as a mixed-integer program: a flow of one plan through token levels.

Binaries ``run[block, option, level]`` and ``step[block, from, to]``; one continuous ``peak``, the
largest activation in use. Rows: what enters a level runs there and leaves it; tokens drop only
after options that allow it; each bound, scaled so that its right-hand side is 1.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from edgeprune.solve.problem import (
    BoolArray,
    Bounds,
    FloatArray,
    FrontPoint,
    IntArray,
    Problem,
    evaluate,
)

OPTIMAL, INFEASIBLE = 0, 2


@dataclass(frozen=True)
class Outcome:
    """What HiGHS said.

    Attributes:
        point: its best plan by our own sums; None: it has none.
        bound_damage: proved of every plan in the program; ``inf``: there is none.
        finished: it did not run out of time.
    """

    point: FrontPoint | None
    bound_damage: float
    finished: bool


@dataclass
class _Rows:
    """A sparse constraint matrix under construction."""

    row: list[IntArray] = field(default_factory=list)
    column: list[IntArray] = field(default_factory=list)
    value: list[FloatArray] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def start(self, low: float, high: float) -> int:
        """Begin a row with these limits."""
        self.low.append(low)
        self.high.append(high)
        return len(self.low) - 1

    def add(self, row: int, columns: IntArray, values: FloatArray | float) -> None:
        """Add coefficients to a row."""
        self.row.append(np.full(columns.size, row))
        self.column.append(columns.ravel())
        self.value.append(np.broadcast_to(values, columns.shape).ravel().astype(np.float64))

    def matrix(self, columns: int) -> csr_array:
        """The finished coefficients."""
        place = np.concatenate(self.row), np.concatenate(self.column)
        shape = len(self.low), columns
        return csr_array(coo_array((np.concatenate(self.value), place), shape=shape))


class Flow:
    """The program for one problem and its bounds, ready to be solved.

    Args:
        problem: the tables.
        bounds: at least one given.
        usable: per block ``[options, levels]``: what may be part of the plan.
        unit_damage: about the damage of the best plan. HiGHS stops at an absolute gap of 1e-6,
            so it gets damages in 1e-4 of this.
    """

    def __init__(
        self, problem: Problem, bounds: Bounds, usable: list[BoolArray], unit_damage: float
    ) -> None:
        self.problem = problem
        self.usable = usable
        self.unit = unit_damage * 1e-4
        self.run: list[IntArray] = []
        self.step: list[IntArray] = []
        count = 0
        for block in problem.blocks:
            pairs = block.latency_ms.shape
            self.run.append(count + np.arange(block.latency_ms.size).reshape(pairs))
            count += block.latency_ms.size
            steps = np.arange(block.levels**2).reshape(block.levels, block.levels)
            self.step.append(count + steps)
            count += steps.size
        self.peak = count
        self.columns = count + 1
        self.rows = _Rows()
        self._add_flow()
        self.bound_rows = self._add_bounds(bounds)

    def solve(self, tightened: float, time_limit_s: float) -> Outcome:
        """Run HiGHS with every bound lowered by ``tightened`` of itself."""
        integrality = np.ones(self.columns)
        integrality[self.peak] = 0
        with _hushed():
            result = milp(
                self._damage() / self.unit,
                integrality=integrality,
                bounds=Box(self._lower(), self._upper()),
                constraints=self._constraint(tightened),
                options={"mip_rel_gap": 0.0, "time_limit": time_limit_s},
            )
        finished = result.status in (OPTIMAL, INFEASIBLE)
        if result.x is None:
            return Outcome(None, np.inf if finished else -np.inf, finished)
        bound = float(result.mip_dual_bound) * self.unit
        return Outcome(self._plan(result.x), bound, finished)

    def _plan(self, values: FloatArray) -> FrontPoint:
        """The plan that a point of the program stands for."""
        choices = [int(values[run].argmax()) // run.shape[1] for run in self.run]
        after = [int(values[step].argmax()) % step.shape[1] for step in self.step]
        return evaluate(self.problem, choices, after)

    def _constraint(self, tightened: float) -> LinearConstraint:
        high = np.array(self.rows.high)
        high[self.bound_rows] -= tightened
        return LinearConstraint(self.rows.matrix(self.columns), np.array(self.rows.low), high)

    def _add_flow(self) -> None:
        levels = len(self.problem.token_levels)
        for index, block in enumerate(self.problem.blocks):
            run, step = self.run[index], self.step[index]
            for level in range(levels):
                entry = self.rows.start(*((1.0, 1.0) if index == level == 0 else (0.0, 0.0)))
                self.rows.add(entry, run[:, level], 1.0)
                if index:
                    self.rows.add(entry, self.step[index - 1][:, level], -1.0)
                leave = self.rows.start(0.0, 0.0)
                self.rows.add(leave, run[:, level], 1.0)
                self.rows.add(leave, step[level], -1.0)
                if not block.may_select.all() and block.may_select.any():
                    needs = self.rows.start(-np.inf, 0.0)
                    self.rows.add(needs, step[level, level + 1 :], 1.0)
                    self.rows.add(needs, run[block.may_select, level], -1.0)

    def _add_bounds(self, bounds: Bounds) -> list[int]:
        added = []
        if bounds.latency_ms is not None:
            added.append(self._bound(self.problem.fixed_latency_ms, bounds.latency_ms))
            self._add_latency(added[-1], bounds.latency_ms)
        if bounds.size_mb is not None:
            added.append(self._bound(self.problem.fixed_weight_mb, bounds.size_mb))
            self._add_weight(added[-1], bounds.size_mb)
        if bounds.peak_memory_mb is not None:
            added.append(self._bound(self.problem.fixed_weight_mb, bounds.peak_memory_mb))
            self._add_weight(added[-1], bounds.peak_memory_mb)
            self.rows.add(added[-1], np.array([self.peak]), 1.0 / bounds.peak_memory_mb)
            for run, block in zip(self.run, self.problem.blocks, strict=True):
                row = self.rows.start(-np.inf, 0.0)
                self.rows.add(row, run, block.activation_mb / bounds.peak_memory_mb)
                self.rows.add(row, np.array([self.peak]), -1.0 / bounds.peak_memory_mb)
        return added

    def _bound(self, fixed: float, bound: float) -> int:
        """A row ``sum / bound <= 1`` that already holds what every plan uses."""
        row = self.rows.start(-np.inf, 1.0)
        always = self.run[0][:, 0]
        self.rows.add(row, always, fixed / bound)
        return row

    def _add_latency(self, row: int, scale: float) -> None:
        for run, step, block in zip(self.run, self.step, self.problem.blocks, strict=True):
            self.rows.add(row, run, block.latency_ms / scale)
            if block.select_latency_ms is not None:
                possible = block.possible_steps
                self.rows.add(row, step[possible], block.select_latency_ms[possible] / scale)
        self.rows.add(row, self.step[-1], self.problem.tail[None, :] / scale)

    def _add_weight(self, row: int, scale: float) -> None:
        for run, block in zip(self.run, self.problem.blocks, strict=True):
            self.rows.add(row, run, block.weight_mb[:, None] / scale)

    def _damage(self) -> FloatArray:
        cost = np.zeros(self.columns)
        for run, step, block in zip(self.run, self.step, self.problem.blocks, strict=True):
            cost[run] = block.damage[:, None]
            if block.select_damage is not None:
                possible = block.possible_steps
                cost[step[possible]] = block.select_damage[possible]
        return cost

    def _lower(self) -> FloatArray:
        lower = np.zeros(self.columns)
        lower[self.peak] = self.problem.fixed_activation_mb
        return lower

    def _upper(self) -> FloatArray:
        upper = np.zeros(self.columns)
        for run, step, usable, block in zip(
            self.run, self.step, self.usable, self.problem.blocks, strict=True
        ):
            upper[run[usable]] = 1.0
            upper[step[block.possible_steps | np.eye(block.levels, dtype=np.bool_)]] = 1.0
        upper[self.peak] = np.inf
        return upper


@contextmanager
def _hushed() -> Iterator[None]:
    """Send C's standard output nowhere: HiGHS 1.12 prints a debug line whatever its settings."""
    if os.name != "posix":
        yield
        return
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
