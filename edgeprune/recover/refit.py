"""Closed-form recovery: what a cut needs and calibration data alone can give, in graph order.

Every matrix that reads cut units (a ``linear`` or a convolution) is refitted: over calibration
data, the squared distance between what the uncut matrix would compute from all units and what the
cut one computes from those that stay becomes least (He et al. 2017; ZipLM). Every BatchNorm's
statistics follow what the cuts before it have done to its input. In graph order, so that all data
has already passed through everything cut, refitted and normalised before.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from edgeprune import console
from edgeprune.importance.readers import (
    Reader,
    gram_of,
    masked_weight,
    reader_of,
    refitted_tensors,
    shown_enough,
)
from edgeprune.plan import Plan, check_plan
from edgeprune.program.batch_norm import BatchNorm, Moments, batch_norms, carried, moments_of
from edgeprune.program.graph import get_attribute, set_tensor
from edgeprune.program.program import Program
from edgeprune.program.walk import Walk
from edgeprune.sites import Sites
from edgeprune.sites.atoms import Dim, positions
from edgeprune.surgery import apply


def refit(sites: Sites, plan: Plan, batches: Sequence[tuple[Tensor, ...]]) -> Program:
    """Apply ``plan``, refit the readers of all cut width sites, and set the statistics behind.

    Args:
        sites: of the dense program.
        plan: what to cut.
        batches: calibration inputs without labels.

    Returns:
        The cut program with refitted weights. Where a cut site is not read by one matrix of its
        own alone, or the data has too few rows for it, the weights that stay are as they were.

    Raises:
        InputError: the plan does not fit the program.
    """
    check_plan(plan, sites)
    order = _cut_readers(sites, plan)
    late = {name for _, names in order for name in names}
    # The late cuts are made as zero columns of their readers, so that one walk does for all.
    early = replace(plan, kept={name: u for name, u in plan.kept.items() if name not in late})
    walked = apply(sites.program, early, sites)
    new = _Refit(sites, plan, early, walked, batches).run(order)
    return _with_tensors(apply(sites.program, plan, sites), sites, plan, new)


class _Refit:
    """One walk through the program whose early cuts are made."""

    def __init__(
        self,
        sites: Sites,
        plan: Plan,
        early: Plan,
        walked: Program,
        batches: Sequence[tuple[Tensor, ...]],
    ) -> None:
        self._sites = sites
        self._early = early
        self._kept = _units(sites, plan)
        self._program = walked
        self._norms = batch_norms(walked.module)
        self._before = _dense_moments(sites.program, self._norms, batches)
        self._walk = Walk(walked.module, [walked.fit(batch) for batch in batches])

    def run(self, order: Sequence[tuple[Reader, list[str]]]) -> dict[str, Tensor]:
        """Path -> the new tensor, in the dense program's shape."""
        readers = {reader.node.name: (reader, names) for reader, names in order}
        norms = {norm.node.name: norm for norm in self._norms}
        new: dict[str, Tensor] = {}
        with console.progress("refitting", total=len(readers), unit="matrices") as advance:
            for node in self._program.module.graph.nodes:
                if node.name in norms:
                    new |= self._statistics(norms[node.name])
                if node.name in readers:
                    reader, names = readers[node.name]
                    new |= self._matrix(reader, node)
                    advance(1, names[0])
        return new

    def _matrix(self, reader: Reader, node: fx.Node) -> dict[str, Tensor]:
        gram = sum(gram_of(reader.features(x)) for x in self._walk.inputs_of(node))
        assert isinstance(gram, Tensor), "refit without calibration batches"
        columns = reader.kept_columns(self._kept)
        dense = self._sites.program.tensors
        if shown_enough(gram):
            new = refitted_tensors(dense, reader, gram, columns)
        else:
            new = {reader.weight: masked_weight(dense[reader.weight], columns)}
        _with_tensors(self._program, self._sites, self._early, new)
        return new

    def _statistics(self, norm: BatchNorm) -> dict[str, Tensor]:
        dense = self._sites.program.tensors
        kept = _units(self._sites, self._early)
        (dim,) = self._sites.flow.tensors[norm.mean]
        rows = torch.tensor(positions(dim, kept))
        before = self._before[norm.mean].at(rows)
        after = moments_of(self._walk.inputs_of(norm.node))
        stored = dense[norm.mean][rows], dense[norm.variance][rows]
        mean, variance = carried(*stored, before, after, norm.epsilon)
        new = {
            norm.mean: dense[norm.mean].index_copy(0, rows, mean),
            norm.variance: dense[norm.variance].index_copy(0, rows, variance),
        }
        _with_tensors(self._program, self._sites, self._early, new)
        return new


def _dense_moments(
    program: Program, norms: Sequence[BatchNorm], batches: Sequence[tuple[Tensor, ...]]
) -> dict[str, Moments]:
    """Path of each BatchNorm's mean -> the moments of what it reads in the dense program."""
    wanted = {norm.mean for norm in norms}
    walk = Walk(program.module, batches)
    return {
        norm.mean: moments_of(walk.inputs_of(norm.node))
        for norm in batch_norms(program.module)
        if norm.mean in wanted
    }


def _cut_readers(sites: Sites, plan: Plan) -> list[tuple[Reader, list[str]]]:
    """Readers to refit, in graph order, each with the cut sites that it alone reads."""
    removed = {
        node
        for r in sites.residuals
        if r.name in plan.kept or r.layer in plan.kept
        for node in r.nodes
    }
    cut = [name for name, units in plan.kept.items() if units and name in sites.atoms]
    found: dict[fx.Node, tuple[Reader, list[str]]] = {}
    for name in cut:
        reader = reader_of(sites, name)
        if reader is not None and reader.node not in removed:
            found.setdefault(reader.node, (reader, []))[1].append(name)
    for node, (reader, names) in list(found.items()):
        if any(reader.width.contains(sites.atoms[name]) for name in cut if name not in names):
            del found[node]  # what it reads is cut for other readers too
    return [found[node] for node in sites.program.module.graph.nodes if node in found]


def _units(sites: Sites, plan: Plan) -> dict[Dim, tuple[int, ...]]:
    return {sites.atoms[name].root: u for name, u in plan.kept.items() if u and name in sites.atoms}


def _with_tensors(program: Program, sites: Sites, plan: Plan, new: dict[str, Tensor]) -> Program:
    """Give a program cut by ``plan`` new tensors, which come in the dense program's shape."""
    kept = _units(sites, plan)
    for path, old in program.tensors.items():
        if path in new:
            values = new[path]
            for axis, dim in enumerate(sites.flow.tensors[path]):
                values = values.index_select(axis, torch.tensor(positions(dim, kept)))
            if isinstance(old, torch.nn.Parameter):
                values = torch.nn.Parameter(values, requires_grad=old.requires_grad)
            set_tensor(program.module, path, values)
    return program


def put_back(sites: Sites, plan: Plan, slim: Program) -> Program:
    """The uncut program with the tensors of one that ``plan`` cut, where that still has them.

    Args:
        sites: of the uncut program.
        plan: of width and depth.
        slim: cut by ``plan``, and perhaps trained since.
    """
    kept = _units(sites, plan)
    module = copy.deepcopy(sites.program.module)
    for path, values in slim.tensors.items():
        if path not in sites.flow.tensors:
            continue
        old = get_attribute(module, path)
        index = [torch.tensor(positions(dim, kept)) for dim in sites.flow.tensors[path]]
        whole = old.detach().clone()
        whole[torch.meshgrid(*index, indexing="ij")] = values.detach()
        if isinstance(old, torch.nn.Parameter):
            whole = torch.nn.Parameter(whole, requires_grad=old.requires_grad)
        set_tensor(module, path, whole)
    return replace(sites.program, module=module)
