"""Length sites: points on the residual stream after which fewer tokens may go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from torch import fx

from edgeprune.program.graph import ATEN, MASKED, ancestors, get_attribute, is_call, is_size, value
from edgeprune.sites.atoms import Dim
from edgeprune.sites.depth import Residual
from edgeprune.sites.flow import Flow, describe
from edgeprune.sites.site import unique_name

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
    uses: dict[Dim, _Uses] = {}
    for residual in residuals:
        for attention in residual.attentions:
            queries, keys = (flow.of(attention.args[i])[2].root for i in (0, 1))
            stream = flow.of(residual.add)
            if queries is keys and len(stream) == 3 and stream[1].root is queries:
                if queries not in uses:
                    uses[queries] = _Uses(flow, queries)
                pinned, why_not = uses[queries].follow(residual.add)
                name = _name(residual, {stream.name for stream in streams})
                streams.append(
                    TokenStream(name, residual, attention, queries, tuple(sorted(pinned)), why_not)
                )
    return tuple(streams)


def hides_pairs(flow: Flow, stream: TokenStream) -> bool:
    """Whether the attention has a fixed mask of its own for pairs of tokens, as a causal one."""
    mask = stream.attention.args[3] if len(stream.attention.args) > 3 else None
    if not isinstance(mask, fx.Node):
        return False
    tables = (node for node in ancestors(mask) if node.op == "get_attr")
    return any(
        sum(dim.root is stream.tokens for dim in flow.of(table)) > 1
        and bool((get_attribute(flow.program.module, str(table.target)) <= MASKED / 2).any())
        for table in tables
    )


def selectable(node: fx.Node, dims: Iterable[Dim], tokens: Dim) -> bool:
    """Whether the kept tokens are taken from a node, so that it need not be computed anew."""
    found = value(node)
    given = node.op in ("placeholder", "get_attr")
    real = found is not None and found.is_floating_point()
    return (real or given) and any(dim.root is tokens for dim in dims)


def _name(residual: Residual, taken: set[str]) -> str:
    """``<layer>.tokens``, made unique: layers may share their weights."""
    return unique_name(f"{residual.layer}.tokens" if residual.layer else "tokens", taken)


@dataclass(frozen=True)
class _Use:
    """One reader that does not hand the tokens on as they came."""

    pins: int | None = None
    why_not: str | None = None


class _Uses:
    """What uses one token dimension up, found in one pass over the graph.

    Attributes:
        found: in graph order.
        after: node -> which of them have fewer tokens to read after a selection there, as the bits
            of a number: what can be reached, and what else is computed anew for it, such as how
            many tokens a mask leaves.
    """

    def __init__(self, flow: Flow, tokens: Dim) -> None:
        self.found: list[_Use] = []
        self.after: dict[fx.Node, int] = {}
        anew: dict[fx.Node, int] = {}
        nodes = list(flow.program.module.graph.nodes)
        for node in nodes:
            anew[node] = 0
            use = _use(flow, node, tokens)
            if use is not None:
                anew[node] = 1 << len(self.found)
                self.found.append(use)
            if not selectable(node, _dims(flow, node), tokens):
                for source in node.all_input_nodes:
                    anew[node] |= anew[source]
        for node in reversed(nodes):
            reached = 0
            for user in node.users:
                reached |= anew[user] | self.after[user]
            self.after[node] = reached

    def follow(self, start: fx.Node) -> tuple[set[int], str | None]:
        """Positions read by number after ``start``, and the first thing that forbids dropping."""
        pinned: set[int] = set()
        for number, use in enumerate(self.found):
            if self.after[start] >> number & 1:
                if use.why_not is not None:
                    return pinned, use.why_not
                if use.pins is not None:
                    pinned.add(use.pins)
        return pinned, None


def _use(flow: Flow, node: fx.Node, tokens: Dim) -> _Use | None:
    """How a node uses the tokens up; None where it hands them on or has none."""
    carried = [n for n in node.all_input_nodes if _carries(flow, n, tokens)]
    if not carried or is_size(node):  # counts examples, no tokens
        return None
    if node.op == "output":
        return _Use(why_not="the tokens are an output of the model")
    if node in flow.unknown:
        return _Use(why_not=f"no rule for {describe(node)}, which reads the tokens")
    if any(_shared_table(flow, n) for n in carried):
        return _Use(why_not=f"{describe(node)} reads a table that joins the batch with the heads")
    if not all(_whole(dim, tokens) for n in (*carried, node) for dim in _dims(flow, n)):
        return _Use(why_not=f"{describe(node)} reads some tokens by their place")
    if _carries(flow, node, tokens):
        return None
    if is_call(node, ATEN.select) and node.args[2] in (0, -1):
        return _Use(pins=node.args[2])
    if not is_call(node, *CONSUMERS):
        return _Use(why_not=f"{describe(node)} reads tokens by their place")
    return None


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
