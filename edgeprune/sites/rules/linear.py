"""Matrix products and table look-ups."""

from __future__ import annotations

from torch import fx

from edgeprune.program.graph import ATEN
from edgeprune.sites.atoms import Dim
from edgeprune.sites.flow import Dims, Flow, rule


@rule(ATEN.linear)
def linear(flow: Flow, node: fx.Node) -> Dims:
    """y[..., out] = sum over in of x[..., in] weight[out, in] + bias[out]."""
    x, weight = flow.of(node.args[0]), flow.of(node.args[1])
    flow.tie(x[-1], weight[1], node)
    if len(node.args) > 2 and node.args[2] is not None:
        flow.tie(weight[0], flow.of(node.args[2])[0], node)
    return (*x[:-1], weight[0])


@rule(ATEN.addmm)
def addmm(flow: Flow, node: fx.Node) -> Dims:
    """bias[out] + x[rows, in] @ weight[in, out]."""
    bias, x, weight = (flow.of(argument) for argument in node.args[:3])
    flow.tie(x[1], weight[0], node)
    flow.tie(bias[-1], weight[1], node)
    return (x[0], weight[1])


@rule(ATEN.matmul, ATEN.mm, ATEN.bmm)
def matmul(flow: Flow, node: fx.Node) -> Dims:
    """Contract a's last dimension with b's second to last; the leading ones broadcast."""
    a, b = flow.of(node.args[0]), flow.of(node.args[1])
    flow.tie(a[-1], b[-2] if len(b) > 1 else b[0], node)
    rows = a[-2:-1]
    columns = b[-1:] if len(b) > 1 else ()
    long, short = (a[:-2], b[:-2]) if len(a) >= len(b) else (b[:-2], a[:-2])
    leading = list(long)
    for offset in range(1, len(short) + 1):
        flow.tie(leading[-offset], short[-offset], node)
        if leading[-offset].size == 1:
            leading[-offset] = short[-offset]
    return (*leading, *rows, *columns)


@rule(ATEN.embedding)
def embedding(flow: Flow, node: fx.Node) -> Dims:
    """Rows of a table: the rows are the vocabulary, which is part of the model's interface."""
    table, ids = flow.of(node.args[0]), flow.of(node.args[1])
    table[0].freeze("it is a vocabulary: cutting it changes what the inputs mean")
    flow.role("vocabulary", table[0])
    return (*ids, table[1])


@rule(ATEN.einsum)
def einsum(flow: Flow, node: fx.Node) -> Dims | list[Dims]:
    """One letter is one dimension; what the result lacks is summed over."""
    given, _, result = str(node.args[0]).replace(" ", "").partition("->")
    operands = [flow.of(operand) for operand in node.args[1]]
    terms = given.split(",")
    if "." in given or not result or any(map(_mismatched, terms, operands)):
        return flow.without_rule(node)
    letters: dict[str, Dim] = {}
    for term, dims in zip(terms, operands, strict=True):
        for letter, dim in zip(term, dims, strict=True):
            flow.tie(letters.setdefault(letter, dim), dim, node)
            if letters[letter].size == 1:
                letters[letter] = dim
    return tuple(letters[letter] for letter in result)


def _mismatched(term: str, dims: Dims) -> bool:
    return len(term) != len(dims)
