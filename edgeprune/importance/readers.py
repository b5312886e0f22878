"""The matrix that reads a site's units, and the exact algebra of cutting its columns.

Cutting columns of y = W x + b and refitting the rest in the least-squares sense needs only the
second moments of x: the Gram matrix over calibration data, with a constant feature for the bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from edgeprune.program.batch_norm import batch_norm_at
from edgeprune.program.graph import ATEN, is_call, shape
from edgeprune.sites import Sites
from edgeprune.sites.atoms import Dim, positions, unit_numbers
from edgeprune.sites.rules.convolution import CONVOLUTIONS
from edgeprune.surgery.gates import readers

# Added to the Gram's diagonal, relative to its mean: keeps directions the data never showed.
RIDGE = 1e-4

# Per column of a matrix, for its refit to be believed.
LEAST_ROWS = 2

# Output positions of a convolution that are fitted per example: patches overlap, and the Gram of
# every one of a 112 x 112 map takes seconds per image.
MOST_POSITIONS = 256


@dataclass(frozen=True)
class Reader:
    """The one matrix that reads a width site: a ``linear``, or a convolution read as one.

    A convolution's row of features is the patch under its kernel, channel by channel.

    Attributes:
        node: the call in the program's graph.
        source: its input: [..., in], or [batch, in, ...] of a convolution.
        weight, bias: paths of its tensors; bias may be None.
        width: the input's dimension of features or channels.
        taps: matrix columns per entry of ``width``: 1, or the size of the kernel.
        unit_of: [columns], the unit each matrix column belongs to, -1 for none.
        centred: whether a BatchNorm behind takes over what would be the bias.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    width: Dim
    taps: int
    unit_of: Tensor
    centred: bool = False

    @property
    def takes_means(self) -> bool:
        """Whether a constant can be added to what the matrix gives."""
        return self.bias is not None or self.centred

    @property
    def rows_per_example(self) -> int:
        """Rows of features that one example gives."""
        if is_call(self.node, ATEN.linear):
            return math.prod(shape(self.source)[1:-1])
        return min(MOST_POSITIONS, math.prod(shape(self.node)[2:]))

    def columns(self, units: tuple[int, ...]) -> Tensor:
        """Numbers of the matrix columns of these units (and of none), ascending."""
        keep = torch.zeros(int(self.unit_of.max()) + 2, dtype=torch.bool)
        keep[list(units)] = True
        keep[-1] = True  # index -1: columns of no unit stay
        return keep[self.unit_of].nonzero()[:, 0]

    def columns_by_unit(self, units: int) -> Tensor:
        """Numbers of every unit's own columns: [units, columns per unit]."""
        return torch.stack([(self.unit_of == unit).nonzero()[:, 0] for unit in range(units)])

    def kept_columns(self, kept: dict[Dim, tuple[int, ...]]) -> Tensor:
        """Numbers of the matrix columns that stay when only ``kept`` stays of some atoms."""
        entries = torch.tensor(positions(self.width, kept))
        return (entries[:, None] * self.taps + torch.arange(self.taps)).flatten()

    def features(self, x: Tensor) -> Tensor:
        """Rows that the matrix multiplies: [rows, columns]."""
        if is_call(self.node, ATEN.linear):
            return x.reshape(-1, x.shape[-1])
        return _patches(x, _sliding(self.node))

    def results(self, y: Tensor) -> Tensor:
        """What the matrix gives for the rows of :meth:`features`: [rows, out]."""
        if is_call(self.node, ATEN.linear):
            return y.reshape(-1, y.shape[-1])
        taken = y.flatten(2)[:, :, _spread(math.prod(y.shape[2:]))]
        return taken.movedim(2, 1).flatten(0, 1)

    def parts(self, weight: Tensor, rows: Tensor, units: int) -> Tensor:
        """What each unit adds to what the matrix gives: [rows, out, units].

        Args:
            weight: the reader's.
            rows: of :meth:`features`.
            units: how many the site has.
        """
        columns = self.columns_by_unit(units)
        matrix = weight.detach().flatten(1)
        return torch.einsum("nuc,ouc->nou", rows[:, columns], matrix[:, columns])


class _Sliding(NamedTuple):
    """How a convolution's window moves, one number per dimension of space."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]


def reader_of(sites: Sites, name: str) -> Reader | None:
    """The site's reader if there is exactly one and it is a matrix with weights of its own."""
    found = readers(sites, sites.atoms[name])
    reader = as_reader(sites, *found[0], sites.atoms[name]) if len(found) == 1 else None
    if reader is None:
        return None
    paths = (path for path in (reader.weight, reader.bias) if path)
    return None if any(len(sites.weight_readers[path]) != 1 for path in paths) else reader


def as_reader(sites: Sites, node: fx.Node, source: fx.Node, atom: Dim) -> Reader | None:
    """What reads an atom at ``source``, if it is a linear map or an ungrouped convolution."""
    if not is_call(node, ATEN.linear, *CONVOLUTIONS) or node.args[0] is not source:
        return None
    if is_call(node, *CONVOLUTIONS) and _argument(node, "groups", 1) != 1:
        return None
    tensors = [n for n in node.args[1:3] if isinstance(n, fx.Node)]
    width = sites.flow.of(source)[-1 if is_call(node, ATEN.linear) else 1]
    if any(n.op != "get_attr" for n in tensors) or not width.contains(atom):
        return None
    taps = math.prod(shape(tensors[0])[2:])
    numbers = torch.tensor(unit_numbers(width, atom)).repeat_interleave(taps)
    bias = str(tensors[1].target) if len(tensors) > 1 else None
    centred = len(node.users) == 1 and batch_norm_at(next(iter(node.users))) is not None
    return Reader(node, source, str(tensors[0].target), bias, width, taps, numbers, centred)


def _argument(node: fx.Node, name: str, default: Any) -> Any:
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    return dict(zip(names, node.args, strict=False)).get(name, node.kwargs.get(name, default))


def _sliding(node: fx.Node) -> _Sliding:
    """The window of a convolution call."""
    kernel = shape(node.args[1])[2:]  # type: ignore[arg-type]

    def each(name: str, default: int) -> tuple[int, ...]:
        given = _argument(node, name, default)
        listed = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        return listed * len(kernel) if len(listed) == 1 else listed

    dilation = each("dilation", 1)
    if _argument(node, "padding", 0) == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in total)
    elif _argument(node, "padding", 0) == "valid":
        padding = ((0, 0),) * len(kernel)
    else:
        padding = tuple((p, p) for p in each("padding", 0))
    return _Sliding(kernel, each("stride", 1), padding, dilation)


def _patches(x: Tensor, window: _Sliding) -> Tensor:
    """What lies under the kernel at evenly spread positions: [rows, channels x kernel]."""
    x = torch.nn.functional.pad(x, [p for pair in reversed(window.padding) for p in pair])
    for axis, (kernel, stride, dilation) in enumerate(
        zip(window.kernel, window.stride, window.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    out = x.shape[2 : 2 + len(window.kernel)]
    chosen = _spread(math.prod(out))
    index: tuple[Any, ...] = (..., *torch.unravel_index(chosen, out), *[slice(None)] * len(out))
    taken = x[index]
    return taken.movedim(2, 1).reshape(len(x) * len(chosen), -1)


def _spread(count: int) -> Tensor:
    """At most ``MOST_POSITIONS`` of ``count`` positions, evenly."""
    return torch.linspace(0, count - 1, min(count, MOST_POSITIONS)).round().long()


def gram_of(x: Tensor) -> Tensor:
    """Second moments of features [..., in] with a constant 1 appended: [in + 1, in + 1]."""
    rows = x.reshape(-1, x.shape[-1])
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return (rows.T @ rows).double()


def shown_enough(gram: Tensor) -> bool:
    """Whether the data had rows enough that a refit does not fit them by heart.

    Else every cut looks free: a classifier behind pooled features shows one row per example.
    """
    rows = float(gram[-1, -1])  # of the constant feature
    return rows >= LEAST_ROWS * (len(gram) - 1)


def augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[out, columns + 1]: the matrix with the bias as the constant feature's column."""
    column = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.cat([weight.flatten(1), column[:, None]], dim=1).detach().double()


def regularised(gram: Tensor) -> Tensor:
    """The Gram matrix with a small ridge, the constant feature left as it is.

    A layer whose units are all dead showed nothing but zeros: any ridge makes that invertible.
    """
    mean = float(gram.diagonal()[:-1].mean()) or 1.0
    ridge = torch.full((len(gram),), RIDGE * mean, dtype=gram.dtype)
    ridge[-1] = 1e-12 * float(gram[-1, -1])
    return gram + torch.diag(ridge)


def refitted(weight: Tensor, gram: Tensor, columns: Tensor, constant: bool) -> Tensor:
    """The best [out, kept (+ 1)] to stand for ``weight`` [out, in + 1] on the kept columns.

    Minimises E |W x - W' x_kept|^2: W' = W G[:, kept] G[kept, kept]^-1. Only where something takes
    it up is the constant feature available.
    """
    last = torch.tensor([len(gram) - 1])
    kept = torch.cat([columns, last]) if constant else columns
    full = regularised(gram)
    return torch.linalg.solve(full[kept][:, kept], full[kept] @ weight.T).T


def refitted_tensors(
    tensors: Mapping[str, Tensor], reader: Reader, gram: Tensor, columns: Tensor
) -> dict[str, Tensor]:
    """Path -> the reader's weight and bias, refitted to stand on ``columns``; all others are 0.

    A reader without a bias, but with a BatchNorm behind, leaves the constant to its statistics.
    """
    dense = tensors[reader.weight]
    bias = tensors[reader.bias] if reader.bias else None
    best = refitted(augmented(dense, bias), gram, columns, reader.takes_means).to(dense.dtype)
    matrix = torch.zeros_like(dense).flatten(1)
    matrix[:, columns] = best[:, : len(columns)]
    weight = {reader.weight: matrix.view_as(dense)}
    return weight | ({reader.bias: best[:, -1].contiguous()} if reader.bias else {})


def masked_weight(dense: Tensor, columns: Tensor) -> Tensor:
    """A reader's weight as it is in these of its matrix's columns, and 0 in the others."""
    matrix = torch.zeros_like(dense).flatten(1)
    matrix[:, columns] = dense.detach().flatten(1)[:, columns]
    return matrix.view_as(dense)
