"""What criteria ask about units: their weights, their values, what is made of them, who goes first.

A unit's own weights compute it; reading weights use it up. Its values are what its readers read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional

from edgeprune.importance.evidence import Evidence
from edgeprune.importance.readers import Reader, as_reader
from edgeprune.program.graph import get_attribute
from edgeprune.sites import Site, Sites
from edgeprune.sites.atoms import Dim, unit_numbers
from edgeprune.surgery.gates import readers


def weight_rows(sites: Sites, site: Site) -> Iterator[tuple[str, Tensor]]:
    """(path, [units, entries]) of every parameter that leaves with the units; no statistics."""
    atom = sites.atoms[site.name]
    for path, axis in site.weights:
        tensor = get_attribute(sites.program.module, path)
        if isinstance(tensor, torch.nn.Parameter):
            rows = by_unit(tensor.detach(), axis, sites.flow.tensors[path][axis], atom)
            yield path, rows.double().flatten(1)


def own_rows(sites: Sites, site: Site) -> Iterator[tuple[str, Tensor]]:
    """(path, [units, entries]) of the parameters that compute the units."""
    reading = {
        str(source.target)
        for reader, _ in readers(sites, sites.atoms[site.name])
        for source in reader.all_input_nodes
        if source.op == "get_attr"
    }
    return ((path, rows) for path, rows in weight_rows(sites, site) if path not in reading)


def sources(sites: Sites, site: Site) -> list[fx.Node]:
    """What the readers of the site read, each once."""
    return list(dict.fromkeys(source for _, source in readers(sites, sites.atoms[site.name])))


def has_values(evidence: Evidence, site: Site) -> bool:
    """Whether something reads the units while the program runs."""
    return bool(sources(evidence.sites, site))


def unit_values(
    evidence: Evidence, site: Site, nodes: Sequence[fx.Node] | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """The units' values, batch by batch.

    Args:
        evidence: the data.
        site: whose units.
        nodes: where to look; None: all that its readers read.

    Returns:
        For each node [examples, units, places, width]: places are tokens or pixels, width is what
        a unit has in the dimension it lies in, such as a head's.
    """
    flow, atom = evidence.sites.flow, evidence.sites.atoms[site.name]
    nodes = sources(evidence.sites, site) if nodes is None else nodes
    for values in evidence.values(nodes):
        yield tuple(
            _arranged(x, flow.of(node), atom, flow.batch)
            for x, node in zip(values, nodes, strict=True)
        )


def by_unit(x: Tensor, axis: int, dim: Dim, atom: Dim) -> Tensor:
    """A tensor with ``dim`` at ``axis`` as [units, width, ...the other dimensions]."""
    numbers = torch.tensor(unit_numbers(dim, atom))
    order = numbers.argsort(stable=True)[int((numbers < 0).sum()) :]
    units = int(numbers.max()) + 1
    return x.movedim(axis, 0).index_select(0, order).unflatten(0, (units, -1))


def _arranged(x: Tensor, dims: Sequence[Dim], atom: Dim, batch: Dim) -> Tensor:
    own = next(axis for axis, dim in enumerate(dims) if dim.contains(atom))
    x = by_unit(x, own, dims[own], atom)  # [units, width, ...]
    rest = [dim for axis, dim in enumerate(dims) if axis != own]
    where = next((axis for axis, dim in enumerate(rest) if dim.contains(batch)), None)
    if where is None:
        x = x[None]
    else:
        leaves = list(rest[where].leaves())
        before = math.prod(leaf.size for leaf in leaves[: leaves.index(batch.root)])
        after = math.prod(leaf.size for leaf in leaves[leaves.index(batch.root) + 1 :])
        x = x.unflatten(where + 2, (before, -1, after)).movedim(where + 3, 0)
    return x.flatten(3).transpose(2, 3) if x.dim() > 3 else x.unsqueeze(2)


@dataclass(frozen=True)
class Matrix:
    """One of the matrices that read units, with what it multiplies.

    Attributes:
        reader: the call.
        weight: [out, columns].
        gram: second moments of the columns over all calibration data, [columns, columns].
    """

    reader: Reader
    weight: Tensor
    gram: Tensor

    def moments(self, units: int) -> Tensor:
        """Sum over the data of <W_u x_u, W_v x_v>: [units, units], what units add to the output."""
        weight = self.weight.double()
        own = functional.one_hot(self.reader.unit_of + 1, units + 1)[:, 1:].double()
        return own.T @ ((weight.T @ weight) * self.gram) @ own


def matrices(evidence: Evidence, site: Site) -> list[Matrix]:
    """All that read the site, as matrices; call where :func:`read_by_matrices`."""
    found = [reader for reader in _readers(evidence, site) if reader is not None]
    if site.name in evidence.readers:
        grams = [evidence.grams[site.name]]
    else:
        grams = evidence.moments(found)
    tensors = evidence.sites.program.tensors
    return [
        Matrix(reader, tensors[reader.weight].detach().flatten(1), gram[:-1, :-1])
        for reader, gram in zip(found, grams, strict=True)
    ]


def read_by_matrices(evidence: Evidence, site: Site) -> bool:
    """Whether all that read the site are linear maps and ungrouped convolutions."""
    found = _readers(evidence, site)
    return bool(found) and None not in found


def _readers(evidence: Evidence, site: Site) -> list[Reader | None]:
    sites, atom = evidence.sites, evidence.sites.atoms[site.name]
    return [as_reader(sites, node, source, atom) for node, source in readers(sites, atom)]


def steps(order: Sequence[int] | Tensor) -> Tensor:
    """Scores of units that leave in this order: the step at which each goes, [units]."""
    order = torch.as_tensor(order)
    scores = torch.empty(len(order))
    scores[order] = torch.arange(len(order), dtype=torch.float32)
    return scores


def redundancy_order(likeness: Tensor) -> list[int]:
    """Units in the order in which the most alike pair is parted, step by step.

    Of the pair, the one more like all others that are left goes.

    Args:
        likeness: [units, units], symmetric; the diagonal does not count.
    """
    alike = likeness.clone().double().fill_diagonal_(-math.inf)
    total = likeness.double().sum(1) - likeness.double().diagonal()
    order: list[int] = []
    while len(order) < len(alike) - 1:
        pair = divmod(int(alike.argmax()), len(alike))
        gone = max(pair, key=lambda unit: float(total[unit]))
        order.append(gone)
        total -= likeness[:, gone]
        alike[gone] = -math.inf
        alike[:, gone] = -math.inf
    left = set(range(len(alike))) - set(order)
    return [*order, *left]
