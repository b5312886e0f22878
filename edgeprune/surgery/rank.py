"""Rank surgery: a table [entries, width] becomes [entries, rank] times [rank, width].

The truncated singular value decomposition is the closest matrix of that rank (Eckart and Young
1936); as two factors it is smaller while rank * (entries + width) < entries * width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.plan import Plan
from edgeprune.program.graph import ATEN, get_attribute, is_call, set_tensor
from edgeprune.sites.tables import table_readers
from edgeprune.surgery.draft import Draft, like


def cut_ranks(draft: Draft, plan: Plan) -> None:
    """Factorise the plan's tables, as they are after all other cuts."""
    for table in draft.sites.tables:
        if table.name in plan.rank:
            _factorise(draft, table.path, plan.rank[table.name])


def truncated(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors [entries, rank] and [rank, width] nearest to a table, scaled alike."""
    u, s, v = torch.linalg.svd(table.detach().double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(table.dtype), (root[:, None] * v[:rank]).to(table.dtype)


def _factorise(draft: Draft, path: str, rank: int) -> None:
    graph = draft.module.graph
    table = get_attribute(draft.module, path)
    names = f"{path}_entries", f"{path}_width"
    for name, factor in zip(names, truncated(table, rank), strict=True):
        set_tensor(draft.module, name, like(table, factor))
    for reader in table_readers(graph, path):
        with graph.inserting_before(reader):
            entries, width = (graph.get_attr(name) for name in names)
            if is_call(reader, ATEN.embedding):
                rows = draft.emit(reader.target, entries, *reader.args[1:])
                new = draft.emit(ATEN.matmul.default, rows, width)
            else:
                read = draft.emit(ATEN.linear.default, reader.args[0], width)
                new = draft.emit(ATEN.linear.default, read, entries, *reader.args[2:])
        reader.replace_all_uses_with(new)
        graph.erase_node(reader)
