"""Rank sites: embedding and un-embedding matrices that may become a product of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from edgeprune.program.graph import ATEN, get_attribute, is_call
from edgeprune.sites.atoms import Dim
from edgeprune.sites.flow import Flow, describe
from edgeprune.sites.site import unique_name


@dataclass(frozen=True)
class Table:
    """A matrix [entries, width] that ids look up, that scores every entry, or (tied) both.

    Attributes:
        name: of the site, ``embeddings.words.rank``.
        path: of the matrix.
        why_not: why it must stay whole; None when it need not.
    """

    name: str
    path: str
    why_not: str | None


def find_tables(flow: Flow, vocabularies: set[Dim]) -> tuple[Table, ...]:
    """One per trainable matrix whose rows are a vocabulary, in graph order."""
    found: list[Table] = []
    for path, dims in flow.tensors.items():
        tensor = get_attribute(flow.program.module, path)
        rows = dims[0].root if len(dims) == 2 else None
        if rows in vocabularies and isinstance(tensor, torch.nn.Parameter):
            name = _name(path, {table.name for table in found})
            found.append(Table(name, path, _why_not(flow, path, tensor)))
    return tuple(found)


def table_readers(graph: fx.Graph, path: str) -> list[fx.Node]:
    """The calls that read a matrix."""
    held = (node for node in graph.nodes if node.op == "get_attr" and node.target == path)
    return [user for node in held for user in node.users]


def _why_not(flow: Flow, path: str, tensor: torch.Tensor) -> str | None:
    for reader in table_readers(flow.program.module.graph, path):
        place = 0 if is_call(reader, ATEN.embedding) else 1
        known = is_call(reader, ATEN.embedding, ATEN.linear)
        held = reader.args[place] if known else None
        if not isinstance(held, fx.Node) or held.target != path:
            return f"{describe(reader)} reads it as a whole"
    if sum(tensor.shape) >= tensor.numel():
        return "two factors are never smaller"
    return None


def _name(path: str, taken: set[str]) -> str:
    owner = path.rpartition(".")[0]
    return unique_name(f"{owner}.rank" if owner else "rank", taken)
