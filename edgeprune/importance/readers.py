"""The matrix that reads a site's units, and the exact algebra of cutting its columns.

Cutting columns of y = W x + b and refitting the rest in the least-squares sense needs only the
second moments of x: the Gram matrix over calibration data, with a constant feature for the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeprune.program.graph import ATEN, is_call
from edgeprune.sites import Sites
from edgeprune.sites.atoms import unit_numbers
from edgeprune.surgery.gates import readers

# Added to the Gram's diagonal, relative to its mean: keeps directions the data never showed.
RIDGE = 1e-4


@dataclass(frozen=True)
class LinearReader:
    """The one ``linear`` that reads a width site.

    Attributes:
        node: the call in the program's graph.
        source: its input, [..., in].
        weight, bias: paths of its tensors; bias may be None.
        unit_of: [in], the unit each input column belongs to, -1 for none.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    unit_of: Tensor

    def columns(self, units: tuple[int, ...]) -> Tensor:
        """Numbers of the input columns of these units (and of none), ascending."""
        keep = torch.zeros(int(self.unit_of.max()) + 2, dtype=torch.bool)
        keep[list(units)] = True
        keep[-1] = True  # index -1: columns of no unit stay
        return keep[self.unit_of].nonzero()[:, 0]


def linear_reader(sites: Sites, name: str) -> LinearReader | None:
    """The site's reader if there is exactly one and it is a ``linear`` with weights of its own."""
    atom = sites.atoms[name]
    found = list(readers(sites, atom))
    if len(found) != 1:
        return None
    node, source = found[0]
    if not is_call(node, ATEN.linear) or node.args[0] is not source:
        return None
    tensors = [n for n in node.args[1:3] if isinstance(n, fx.Node)]
    if any(n.op != "get_attr" or len(_uses(sites, str(n.target))) != 1 for n in tensors):
        return None
    numbers = torch.tensor(unit_numbers(sites.flow.of(source)[-1], atom))
    bias = str(tensors[1].target) if len(tensors) > 1 else None
    return LinearReader(node, source, str(tensors[0].target), bias, numbers)


def _uses(sites: Sites, path: str) -> list[fx.Node]:
    return [
        user
        for node in sites.program.module.graph.nodes
        if node.op == "get_attr" and node.target == path
        for user in node.users
    ]


def gram_of(x: Tensor) -> Tensor:
    """Second moments of features [..., in] with a constant 1 appended: [in + 1, in + 1]."""
    rows = x.reshape(-1, x.shape[-1])
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return (rows.T @ rows).double()


def augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[out, in + 1]: the weight with the bias as the constant feature's column."""
    column = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.cat([weight, column[:, None]], dim=1).detach().double()


def regularised(gram: Tensor) -> Tensor:
    """The Gram matrix with a small ridge, the constant feature left as it is."""
    ridge = torch.full((len(gram),), RIDGE * float(gram.diagonal()[:-1].mean()), dtype=gram.dtype)
    ridge[-1] = 1e-12 * float(gram[-1, -1])
    return gram + torch.diag(ridge)


def refitted(weight: Tensor, gram: Tensor, columns: Tensor, has_bias: bool) -> Tensor:
    """The best [out, kept (+ 1)] to stand for ``weight`` [out, in + 1] on the kept columns.

    Minimises E |W x - W' x_kept|^2: W' = W G[:, kept] G[kept, kept]^-1. Without a bias the
    constant feature is not available.
    """
    constant = torch.tensor([len(gram) - 1])
    kept = torch.cat([columns, constant]) if has_bias else columns
    full = regularised(gram)
    return torch.linalg.solve(full[kept][:, kept], full[kept] @ weight.T).T


def refitted_tensors(
    tensors: Mapping[str, Tensor], reader: LinearReader, gram: Tensor, columns: Tensor
) -> dict[str, Tensor]:
    """Path -> the reader's weight [out, kept] and its bias, refitted to stand on ``columns``."""
    dense = tensors[reader.weight]
    bias = tensors[reader.bias] if reader.bias else None
    best = refitted(augmented(dense, bias), gram, columns, bias is not None).to(dense.dtype)
    weight = {reader.weight: best[:, : len(columns)].contiguous()}
    return weight | ({reader.bias: best[:, -1].contiguous()} if reader.bias else {})
