"""Length sites: points on the residual stream after which fewer tokens may go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from torch import fx

from edgeprune.program.graph import ATEN, descendants, is_call, value
from edgeprune.sites.atoms import Dim
from edgeprune.sites.depth import Residual
from edgeprune.sites.flow import Flow, describe

# What may use the token dimension up: each treats all tokens alike, so that a dropped token is
# one that does not count.
CONSUMERS = (
    *(ATEN.sum, ATEN.mean, ATEN.amax, ATEN.matmul, ATEN.bmm),
    ATEN.scaled_dot_product_attention,  # over the keys of another sequence
)


@dataclass(frozen=True)
class TokenStream:
    """Where tokens can be selected, and what must follow.

    Attributes:
        name: of the site, ``encoder.layer.3.tokens``.
        residual: the attention sub-layer; its sum carries the selected tokens on.
        attention: the call whose probabilities rank the tokens.
        tokens: the dimension that shrinks.
        pinned: positions that a later ``select`` reads by number: 0 and -1.
        why_not: why selection is impossible here; None when it is possible.
    """

    name: str
    residual: Residual
    attention: fx.Node
    tokens: Dim
    pinned: tuple[int, ...]
    why_not: str | None


def find_token_streams(flow: Flow, residuals: tuple[Residual, ...]) -> tuple[TokenStream, ...]:
    """One per self-attention sub-layer, in graph order."""
    streams: list[TokenStream] = []
    for residual in residuals:
        for attention in residual.attentions:
            queries, keys = (flow.of(attention.args[i])[2].root for i in (0, 1))
            stream = flow.of(residual.add)
            if queries is keys and len(stream) == 3 and stream[1].root is queries:
                pinned, why_not = _follow(flow, residual.add, queries)
                name = _name(residual, {stream.name for stream in streams})
                streams.append(
                    TokenStream(name, residual, attention, queries, tuple(sorted(pinned)), why_not)
                )
    return tuple(streams)


def _name(residual: Residual, taken: set[str]) -> str:
    """``<layer>.tokens``, made unique: layers may share their weights."""
    base = name = f"{residual.layer}.tokens" if residual.layer else "tokens"
    number = 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def _follow(flow: Flow, start: fx.Node, tokens: Dim) -> tuple[set[int], str | None]:
    """Positions read by number after ``start``, and the first thing that forbids dropping any."""
    pinned: set[int] = set()
    for node in sorted(descendants(start) - {start}):
        if node.op == "output":
            if any(_carries(flow, n, tokens) for n in node.all_input_nodes):
                return pinned, "the tokens are an output of the model"
            continue
        carried = [n for n in node.all_input_nodes if _carries(flow, n, tokens)]
        if not carried:
            continue
        if node in flow.unknown:
            return pinned, f"no rule for {describe(node)}, which reads the tokens"
        if any(_shared_table(flow, n) for n in carried):
            return pinned, f"{describe(node)} reads a table that joins the batch with the heads"
        if not all(_whole(dim, tokens) for n in (*carried, node) for dim in _dims(flow, n)):
            return pinned, f"{describe(node)} reads some tokens by their place"
        if _carries(flow, node, tokens):
            continue
        if is_call(node, ATEN.select) and node.args[2] in (0, -1):
            pinned.add(node.args[2])
        elif not is_call(node, *CONSUMERS):
            return pinned, f"{describe(node)} reads tokens by their place"
    return pinned, None


def _shared_table(flow: Flow, node: fx.Node) -> bool:
    """Whether it is no float and has no batch of its own, by which tokens could be taken."""
    kind = value(node)
    joined = (d.contains(flow.batch) and d.root is not flow.batch.root for d in flow.of(node))
    return kind is not None and not kind.is_floating_point() and any(joined)


def _carries(flow: Flow, node: fx.Node, tokens: Dim) -> bool:
    return any(dim.contains(tokens) or not _whole(dim, tokens) for dim in _dims(flow, node))


def _dims(flow: Flow, node: fx.Node) -> Iterator[Dim]:
    return chain.from_iterable(flow.outputs(node))


def _whole(dim: Dim, tokens: Dim) -> bool:
    """Whether the dimension holds the tokens as a whole or not at all."""
    found = dim.root
    if found is tokens:
        return True
    if found.kind == "leaf":
        return found not in set(tokens.leaves())
    return all(_whole(part, tokens) for part in found.parts)
