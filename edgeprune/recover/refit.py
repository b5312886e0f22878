"""Closed-form recovery: refit every matrix that reads from cut units, in depth order.

Each refit minimises, over calibration data, the squared distance between what the uncut matrix
would compute from all units and what the cut one computes from those that stay (He et al. 2017;
ZipLM). Going in depth order, the data has already passed through everything cut before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeprune import console
from edgeprune.importance.evidence import values_at
from edgeprune.importance.readers import (
    LinearReader,
    augmented,
    gram_of,
    linear_reader,
    refitted,
)
from edgeprune.plan import Plan
from edgeprune.program.graph import set_tensor
from edgeprune.program.program import Program
from edgeprune.sites import Sites
from edgeprune.surgery import apply


def refit(sites: Sites, plan: Plan, batches: Sequence[tuple[Tensor, ...]]) -> Program:
    """Apply ``plan`` and refit the readers of all cut width sites.

    Args:
        sites: of the dense program.
        plan: what to cut.
        batches: calibration inputs without labels.

    Returns:
        The cut program with refitted weights. Sites whose reader is not one ``linear`` of its
        own keep their weights as they are.
    """
    done = replace(plan, kept={name: units for name, units in plan.kept.items() if not units})
    new: dict[str, Tensor] = {}
    order = _cut_readers(sites, plan)
    with console.progress("refitting", total=len(order), unit="matrices") as advance:
        for name, reader in order:
            program = _with_tensors(apply(sites.program, done, sites), new)
            gram = _gram(program, reader, batches)
            new |= _refit_one(sites, plan, name, reader, gram)
            done = replace(done, kept=done.kept | {name: plan.kept[name]})
            advance(1, name)
    rest = {name: units for name, units in plan.kept.items() if name not in done.kept}
    done = replace(done, kept=done.kept | rest)
    return _with_tensors(apply(sites.program, done, sites), new)


def _cut_readers(sites: Sites, plan: Plan) -> list[tuple[str, LinearReader]]:
    """Cut sites with one linear reader that still runs, in graph order."""
    place = {node: i for i, node in enumerate(sites.program.module.graph.nodes)}
    removed = {
        node for r in sites.residuals if r.name in plan.kept or r.layer in plan.kept for node in r.nodes
    }
    found = []
    for name, units in plan.kept.items():
        reader = linear_reader(sites, name) if units and name in sites.atoms else None
        if reader is not None and reader.node not in removed and len(units) < sites.get(name).units:
            found.append((name, reader))
    return sorted(found, key=lambda pair: place[pair[1].node])


def _gram(program: Program, reader: LinearReader, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    node = next(n for n in program.module.graph.nodes if n.name == reader.node.name)
    total = torch.zeros(())
    for batch in batches:
        (x,) = values_at(program.module, [node.args[0]], batch)
        total = total + gram_of(x)
    return total


def _refit_one(
    sites: Sites, plan: Plan, name: str, reader: LinearReader, gram: Tensor
) -> dict[str, Tensor]:
    tensors = sites.program.tensors
    bias = tensors[reader.bias] if reader.bias else None
    columns = reader.columns(plan.kept[name])
    dense = augmented(tensors[reader.weight], bias)
    best = refitted(dense, gram, columns, bias is not None).to(tensors[reader.weight].dtype)
    weight = {reader.weight: best[:, : len(columns)].contiguous()}
    return weight | ({reader.bias: best[:, -1].contiguous()} if reader.bias else {})


def _with_tensors(program: Program, tensors: dict[str, Tensor]) -> Program:
    """The program with some weights replaced; it is ours alone, so this is done in place."""
    read = program.tensors
    for path, values in tensors.items():
        if path in read:
            set_tensor(program.module, path, torch.nn.Parameter(values.clone()))
    return program
