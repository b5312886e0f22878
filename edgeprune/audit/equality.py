"""Masked equals removed: the cut program against the uncut one with the same units silenced."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx.node import map_aggregate

from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.program.graph import annotate
from edgeprune.program.program import as_tuple
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply, masked
from edgeprune.task import Batch

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Equality:
    """One comparison.

    Attributes:
        dtype: "float64" or "float32".
        difference: the largest, relative to the largest masked output.
        limit: the most that rounding explains.
    """

    dtype: str
    difference: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it is within the limit; what is not a number is not."""
        return self.difference <= self.limit


def compare(sites: Sites, plan: Plan, inputs: Batch) -> tuple[Equality, ...]:
    """Compare the cut program with the masked one in double and single precision.

    Args:
        sites: of the program, in single precision.
        plan: of cuts that masking can stand for, as :func:`maskable` gives.
        inputs: one batch.
    """
    double = find_sites(in_double(sites.program))
    pairs = ((torch.float64, double), (torch.float32, sites))
    return tuple(
        Equality(
            str(dtype).removeprefix("torch."),
            _difference(each, replace(plan, program=each.program.fingerprint), inputs, dtype),
            LIMITS[dtype],
        )
        for dtype, each in pairs
    )


def maskable(sites: Sites, plan: Plan) -> tuple[Plan, tuple[str, ...]]:
    """The part of a plan that gates can stand for, and the names of what they cannot.

    A removed layer takes its closing norm along, a site that is cut inexactly (the width under a
    layer norm) is no masked one, dropped tokens are not silent ones, removed ids read another row,
    and two factors are not the table.
    """
    closing = {layer.name for layer in sites.layers if _ends_in_a_norm(layer.sublayers)}
    left_out = [
        name
        for name in plan.kept
        if name in closing or not sites.get(name).exact or sites.get(name).axis == "vocabulary"
    ]
    kept = {name: units for name, units in plan.kept.items() if name not in left_out}
    return Plan(plan.program, kept), (*left_out, *plan.tokens, *plan.length, *plan.rank)


def in_double(program: Program) -> Program:
    """The same program with weights, constants and literal types in float64."""
    module = copy.deepcopy(program.module).double()
    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _doubled)
    module.recompile()
    inputs = _cast(program.example_inputs, torch.float64)
    annotate(module, inputs)
    return replace(program, module=module, example_inputs=inputs)


def _difference(sites: Sites, plan: Plan, inputs: Batch, dtype: torch.dtype) -> float:
    batch = _cast(inputs, dtype)
    with torch.no_grad():
        cut = as_tuple(apply(sites.program, plan, sites)(*batch))
        silenced = as_tuple(masked(sites, plan)(*batch))
    scales = (max(float(wanted.double().abs().max()), 1e-30) for wanted in silenced)
    gaps = (
        float((a.double() - b.double()).abs().max()) for a, b in zip(cut, silenced, strict=True)
    )
    return max(gap / scale for gap, scale in zip(gaps, scales, strict=True))


def _ends_in_a_norm(sublayers: Any) -> bool:
    return bool(sublayers[-1].closing_norms)


def _cast(inputs: Batch, dtype: torch.dtype) -> Batch:
    return tuple(each.to(dtype) if each.is_floating_point() else each for each in inputs)


def _doubled(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
