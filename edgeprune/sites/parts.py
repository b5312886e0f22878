"""Parts: the program as sub-layers and, outside of them, chunks around one weight each.

What a plan costs is the sum over its parts. A sub-layer ``x + f(x)`` has width sites of its own;
all others (the channels of a stage's stream, of a stem, of a block that changes the resolution)
*span*: cutting one changes every part that carries it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from edgeprune.program.graph import get_attribute
from edgeprune.sites.atoms import Dim
from edgeprune.sites.depth import Residual
from edgeprune.sites.site import Site, unique_name

if TYPE_CHECKING:
    from edgeprune.sites.find import Sites


@dataclass(frozen=True)
class Part:
    """One sub-layer with its closing norms, or one chunk outside of all.

    Attributes:
        name: the sub-layer's, or that of the module whose weight the chunk is made around.
        nodes: in graph order; weights are not among them.
        residual: None for a chunk.
        spanning: the spanning sites whose units its tensors carry, in order of appearance.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    residual: Residual | None
    spanning: tuple[str, ...]

    def boundary(self) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
        """Tensors that come in from outside (no weights), and those that are read outside."""
        inside = set(self.nodes)
        sources = dict.fromkeys(n for node in self.nodes for n in node.all_input_nodes)
        come = tuple(n for n in sources if n not in inside and n.op != "get_attr")
        return come, tuple(n for n in self.nodes if not inside.issuperset(n.users))


def width_sites(sites: Sites, residual: Residual) -> tuple[Site, ...]:
    """The main width site within this sub-layer alone, and what multiplies its units.

    The main site is what ``units`` of a block count: heads, kv groups, neurons or channels.
    Queries per group follow it; any further site of the sub-layer is taken as one that spans.
    """
    inside = set(residual.nodes)
    readers = sites.weight_readers
    own = {path for path in readers if readers[path] <= inside} - sites.shared
    found = [
        site
        for site in sites.cuttable
        if site.kind == "width" and own.issuperset(path for path, _ in site.weights)
    ]
    found.sort(key=lambda site: site.axis == "queries_per_group")
    return (*found[:1], *(site for site in found[1:] if site.axis == "queries_per_group"))


def spanning_sites(sites: Sites) -> tuple[Site, ...]:
    """Width sites that a plan may choose and that are no sub-layer's own, in graph order."""
    own = {site.name for residual in sites.residuals for site in width_sites(sites, residual)}
    return tuple(
        site
        for site in sites.cuttable
        if site.kind == "width" and site.exact and site.name not in own
    )


def partition(sites: Sites) -> tuple[Part, ...]:
    """Every sub-layer, then every chunk that carries a spanning site, each in graph order.

    A chunk begins where a weight of two or more dimensions is read; what follows (norms,
    activations, pooling) joins the latest chunk that it reads from. What reads from none costs
    next to nothing and is left to the constant part.
    """
    names = {sites.atoms[site.name].root: site.name for site in spanning_sites(sites)}
    sublayers = [(each, (*each.nodes, each.add, *each.closing_norms)) for each in sites.residuals]
    found = [Part(r.name, nodes, r, _spanning(sites, nodes, names)) for r, nodes in sublayers]
    inside = {node for _, nodes in sublayers for node in nodes}
    taken = {part.name for part in found}
    for nodes in _chunks(sites, inside, names):
        name = _name(sites, nodes, taken)
        found.append(Part(name, nodes, None, _spanning(sites, nodes, names)))
    return tuple(found)


def _chunks(
    sites: Sites, inside: set[fx.Node], names: dict[Dim, str]
) -> Iterable[tuple[fx.Node, ...]]:
    chunks: list[list[fx.Node]] = []
    place: dict[fx.Node, int] = {}
    for node in sites.program.module.graph.nodes if names else ():
        if node.op != "call_function" or node in inside or not _spanning(sites, (node,), names):
            continue
        if any(_is_matrix(sites, source) for source in node.all_input_nodes):
            place[node] = len(chunks)
            chunks.append([node])
        elif before := [place[source] for source in node.all_input_nodes if source in place]:
            place[node] = max(before)
            chunks[place[node]].append(node)
    return map(tuple, chunks)


def _spanning(sites: Sites, nodes: tuple[fx.Node, ...], names: dict[Dim, str]) -> tuple[str, ...]:
    if not names:
        return ()
    leaves = (
        leaf
        for node in nodes
        for each in (*node.all_input_nodes, node)
        for dims in sites.flow.outputs(each)
        for dim in dims
        for leaf in dim.leaves()
    )
    return tuple(dict.fromkeys(names[leaf] for leaf in leaves if leaf in names))


def _is_matrix(sites: Sites, node: fx.Node) -> bool:
    if node.op != "get_attr":
        return False
    found = get_attribute(sites.program.module, str(node.target))
    return isinstance(found, torch.nn.Parameter) and found.ndim > 1


def _name(sites: Sites, nodes: tuple[fx.Node, ...], taken: set[str]) -> str:
    """The module of its first weight, made unique."""
    path = next(str(n.target) for n in nodes[0].all_input_nodes if _is_matrix(sites, n))
    name = unique_name(path.rpartition(".")[0] or path, taken)
    taken.add(name)
    return name
