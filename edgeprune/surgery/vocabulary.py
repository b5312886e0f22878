"""Vocabulary surgery: the model still takes the old ids; its scores are of the kept ones only."""

from __future__ import annotations

import json

import torch

from edgeprune.plan import Plan
from edgeprune.program.graph import ATEN, calls
from edgeprune.program.program import Program, as_tuple
from edgeprune.sites.atoms import Dim
from edgeprune.surgery.draft import Draft

META = "vocabulary"


def cut_vocabularies(draft: Draft, plan: Plan) -> None:
    """Let every id be looked up in a list of new ones before its row is read.

    The ids of removed rows read the plan's fall-back: the row of the first kept id if it names
    none.
    """
    for name, kept in plan.kept.items():
        if draft.sites.axes.get(name) == "vocabulary":
            rows = draft.sites.atoms[name].root
            new = torch.full((rows.size,), kept.index(plan.fallback.get(name, kept[0])))
            new[list(kept)] = torch.arange(len(kept))
            if len(kept) < rows.size:
                _translate_ids(draft, rows, kept, new)


def _translate_ids(draft: Draft, rows: Dim, kept: tuple[int, ...], new: torch.Tensor) -> None:
    """Put a look-up in front of every table with these rows; ``new`` [rows] is the list."""
    for node in calls(draft.module.graph, ATEN.embedding):
        table, ids, padding = (*node.args, -1)[:3]
        if not any(dim.root is rows for dim in draft.dims(table)):
            continue
        with draft.module.graph.inserting_before(node):
            numbers = draft.buffer(f"{table.target}_ids_of_{rows.size}", new)
            flat = draft.emit(ATEN.reshape.default, ids, [-1])
            looked_up = draft.emit(ATEN.index_select.default, numbers, 0, flat)
            sizes = [-1 if size is None else size for size in draft.sizes(ids)]
            ids = draft.emit(ATEN.reshape.default, looked_up, sizes)
        node.args = (table, ids, kept.index(padding) if padding in kept else -1)


def ids_of_outputs(program: Program, draft: Draft) -> dict[str, str]:
    """A note for the cut program's meta: which old id each entry of an output scores."""
    known: dict[str, list[int]] = json.loads(program.meta.get(META, "{}"))
    output = next(n for n in program.module.graph.nodes if n.op == "output")
    for name, node in zip(program.output_names, as_tuple(output.args[0]), strict=True):
        for dim in draft.sites.flow.of(node):
            if dim.root in draft.kept:
                before = known.get(name, range(dim.size))
                known[name] = [before[unit] for unit in draft.kept[dim.root]]
    return {META: json.dumps(known)} if known else {}
