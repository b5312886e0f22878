"""Closed-form recovery: refit every matrix that reads from cut units, in depth order.

Each refit minimises, over calibration data, the squared distance between what the uncut matrix
would compute from all units and what the cut one computes from those that stay (He et al. 2017;
ZipLM). Going in depth order, the data has already passed through everything cut before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from edgeprune import console
from edgeprune.importance.evidence import values_at
from edgeprune.importance.readers import (
    LinearReader,
    gram_of,
    linear_reader,
    refitted_tensors,
)
from edgeprune.plan import Plan, check_plan
from edgeprune.program.graph import set_tensor
from edgeprune.program.program import Program
from edgeprune.sites import Sites
from edgeprune.sites.atoms import positions
from edgeprune.surgery import apply


def refit(sites: Sites, plan: Plan, batches: Sequence[tuple[Tensor, ...]]) -> Program:
    """Apply ``plan`` and refit the readers of all cut width sites.

    Args:
        sites: of the dense program.
        plan: what to cut.
        batches: calibration inputs without labels.

    Returns:
        The cut program with refitted weights. Where a cut site is not read by one ``linear`` of
        its own alone, the weights that stay are as they were.

    Raises:
        InputError: the plan does not fit the program.
    """
    check_plan(plan, sites)
    order = _cut_readers(sites, plan)
    late = {name for _, names in order for name in names}
    done = replace(plan, kept={name: u for name, u in plan.kept.items() if name not in late})
    new: dict[str, Tensor] = {}
    with console.progress("refitting", total=len(order), unit="matrices") as advance:
        for reader, names in order:
            program = _with_tensors(sites, done, new)
            kept = {sites.atoms[name].root: plan.kept[name] for name in names}
            columns = torch.tensor(positions(sites.flow.of(reader.source)[-1], kept))
            gram = _gram(program, reader, batches)
            new |= refitted_tensors(sites.program.tensors, reader, gram, columns)
            done = replace(done, kept=done.kept | {name: plan.kept[name] for name in names})
            advance(1, names[0])
    return _with_tensors(sites, plan, new)


def _cut_readers(sites: Sites, plan: Plan) -> list[tuple[LinearReader, list[str]]]:
    """Readers to refit, in graph order, each with the cut sites that it alone reads."""
    removed = {
        node
        for r in sites.residuals
        if r.name in plan.kept or r.layer in plan.kept
        for node in r.nodes
    }
    cut = [name for name, units in plan.kept.items() if units and name in sites.atoms]
    found: dict[fx.Node, tuple[LinearReader, list[str]]] = {}
    for name in cut:
        reader = linear_reader(sites, name)
        if reader is not None and reader.node not in removed:
            found.setdefault(reader.node, (reader, []))[1].append(name)
    for node, (reader, names) in list(found.items()):
        width = sites.flow.of(reader.source)[-1]
        if any(width.contains(sites.atoms[name]) for name in cut if name not in names):
            del found[node]  # what it reads is cut for other readers too
    return [found[node] for node in sites.program.module.graph.nodes if node in found]


def _gram(program: Program, reader: LinearReader, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    node = next(n for n in program.module.graph.nodes if n.name == reader.node.name)
    total = torch.zeros(())
    for batch in batches:
        (x,) = values_at(program.module, [node.args[0]], batch)
        total = total + gram_of(x)
    return total


def _with_tensors(sites: Sites, plan: Plan, refitted: dict[str, Tensor]) -> Program:
    """The cut program with refitted weights, of which the plan may have cut rows."""
    program = apply(sites.program, plan, sites)
    kept = {sites.atoms[name].root: units for name, units in plan.kept.items() if units}
    for path, old in program.tensors.items():
        if path in refitted:
            rows = torch.tensor(positions(sites.flow.tensors[path][0], kept))
            values = refitted[path].index_select(0, rows)
            set_tensor(
                program.module, path, torch.nn.Parameter(values, requires_grad=old.requires_grad)
            )
    return program
