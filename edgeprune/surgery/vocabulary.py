"""Vocabulary surgery: the model still takes the old ids; its scores are of the kept ones only."""

from __future__ import annotations

import json

import torch

from edgeprune.plan import Plan
from edgeprune.program.graph import ATEN, calls
from edgeprune.program.program import Program
from edgeprune.sites.atoms import Dim
from edgeprune.surgery.draft import Draft

META = "vocabulary"


def cut_vocabularies(draft: Draft, plan: Plan) -> None:
    """Let every id be looked up in a list of new ones before its row is read.

    The ids of removed rows read the plan's fall-back: the row of the first kept id if it names
    none.
    """
    for name, kept in plan.kept.items():
        site = draft.sites.get(name)
        if site.axis == "vocabulary" and len(kept) < site.units:
            new = torch.full((site.units, 1), kept.index(plan.fallback.get(name, kept[0])))
            new[list(kept), 0] = torch.arange(len(kept))
            _translate_ids(draft, draft.sites.atoms[name].root, kept, new)


def _translate_ids(draft: Draft, rows: Dim, kept: tuple[int, ...], new: torch.Tensor) -> None:
    for node in calls(draft.module.graph, ATEN.embedding):
        table, ids, padding = (*node.args, -1)[:3]
        if not any(dim.root is rows for dim in draft.dims(table)):
            continue
        with draft.module.graph.inserting_before(node):
            # A table of one column: an operator that analysis and both runtimes know.
            numbers = draft.buffer(f"{table.target}_ids_of_{rows.size}", new)
            looked_up = draft.emit(ATEN.embedding.default, numbers, ids)
            ids = draft.emit(ATEN.squeeze.dim, looked_up, -1)
        node.args = (table, ids, kept.index(padding) if padding in kept else -1)


def ids_of_outputs(program: Program, draft: Draft) -> dict[str, str]:
    """What the notes say of outputs that score a cut vocabulary: its old ids, in order."""
    known: dict[str, list[int]] = json.loads(program.meta.get(META, "{}"))
    output = next(n for n in program.module.graph.nodes if n.op == "output")
    for name, node in zip(program.output_names, output.all_input_nodes, strict=True):
        for dim in draft.sites.flow.of(node):
            if dim.root in draft.kept:
                before = known.get(name, range(dim.size))
                known[name] = [before[unit] for unit in draft.kept[dim.root]]
    return {META: json.dumps(known)} if known else {}
