"""Estimated costs: pieces priced from a profile's peak speed and bandwidth, without a device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from torch import fx

from edgeprune.cost.blocks import Block, Span, find_blocks, piece_of, sizes_of, spans_of
from edgeprune.cost.fit import Sampled, block_cost
from edgeprune.cost.memory import (
    MB,
    USUAL_CONSTANT_MB,
    USUAL_SELECTION_MB,
    tensor_bytes,
    working_set_bytes,
)
from edgeprune.cost.table import CostTable, Transition
from edgeprune.lower.lowering import Lowering, Precision
from edgeprune.profile import Profile
from edgeprune.program.flops import flops
from edgeprune.program.graph import ATEN, is_call, shape
from edgeprune.sites import Sites
from edgeprune.sites.parts import Part

# Of the peak, what matrix products reach in XNNPACK, and of the bandwidth, what the rest does:
# MiniLM on one Zen 4 core: 24.5 of 29.6 ms in fp32.
COMPUTE_SHARE, BANDWIDTH_SHARE = 0.8, 0.5
VIEWS = (ATEN.view, ATEN.reshape, ATEN.unsqueeze, ATEN.squeeze, ATEN.expand, ATEN.sym_size)


def estimate_costs(sites: Sites, profile: Profile, lowering: Lowering) -> CostTable:
    """A table of the same form as a measured one, labelled "estimated", for one thread.

    Every operator takes the longer of its arithmetic at the fastest core's peak and its bytes at
    the memory's bandwidth; linear layers count in the lowering's precision, all else in fp32.

    Args:
        sites: of the dense program.
        profile: peak speeds and bandwidth of the device.
    """
    precision = lowering.precision
    speed = _Speed(profile, precision)
    blocks = find_blocks(sites)
    costs = tuple(
        block_cost(sites, block, _sampled(sites, block, speed), precision) for block in blocks
    )
    program = sites.program
    batch = program.example_inputs[0].shape[0]
    inside = {node for part in sites.parts for node in _counted(part)}
    outside = [node for node in program.module.graph.nodes if node not in inside]
    sizes = tensor_bytes(sites, precision)
    weight = sum(cost.weight_mb * len(cost.members) for cost in costs)
    closing = sum(cost.removed_ms[-1][1] * len(cost.members) for cost in costs)
    fixed_ms = max(speed.ms(outside) / batch - closing, 0.0)
    table = CostTable(
        device=profile.name,
        runtime=lowering.runtime,
        delegate=lowering.delegate,
        versions={},
        precision=precision,
        threads=1,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        program=program.fingerprint,
        provenance="estimated",
        dense_ms=0.0,
        blocks=costs,
        transition=_transition(sites, speed),
        scale=1.0,
        fixed_ms=fixed_ms,
        fixed_weight_mb=sum(sizes.values()) / MB - weight,
        fixed_activation_mb=USUAL_CONSTANT_MB,
        selection_mb=USUAL_SELECTION_MB,
    )
    dense = fixed_ms + sum(
        table.block_ms(part.name, block.units, block.tokens)
        for block in blocks
        for part in block.parts
    )
    return replace(table, dense_ms=dense)


class _Speed:
    """Seconds of operators on the fastest core of a device."""

    def __init__(self, profile: Profile, precision: Precision) -> None:
        core = profile.fastest
        self.flops_per_ms = COMPUTE_SHARE * core.peak_gflops_fp32 * 1e6
        linear = core.peak_gops_int8 if precision == "int8" else core.peak_gflops_fp32
        self.linear_flops_per_ms = COMPUTE_SHARE * linear * 1e6
        self.bytes_per_ms = BANDWIDTH_SHARE * profile.bandwidth_gbps * 1e6
        self.weight_bytes = {"int8": 1, "fp16": 2, "fp32": 4}[precision]

    def ms(self, nodes: Iterable[fx.Node]) -> float:
        """All of these, one after the other."""
        return sum(self._node_ms(node) for node in nodes if node.op == "call_function")

    def _node_ms(self, node: fx.Node) -> float:
        if is_call(node, *VIEWS):
            return 0.0
        peak = self.linear_flops_per_ms if is_call(node, ATEN.linear) else self.flops_per_ms
        return max(flops(node) / peak, self._bytes(node) / self.bytes_per_ms)

    def _bytes(self, node: fx.Node) -> float:
        written = 4 * math.prod(shape(node))
        if is_call(node, ATEN.embedding):  # reads the rows it hands on
            return 2 * written
        read = sum(
            math.prod(shape(source)) * (self.weight_bytes if _is_matrix(node, source) else 4)
            for source in node.all_input_nodes
        )
        return written + read


def _counted(part: Part) -> tuple[fx.Node, ...]:
    """The part without what stays when it is removed."""
    residual = part.residual
    return part.nodes if residual is None else (*residual.nodes, residual.add)


def _sampled(sites: Sites, block: Block, speed: _Speed) -> Sampled:
    def of(units: int, tokens: int, span: Span | None = None) -> tuple[float, float]:
        module, inputs, _ = piece_of(sites, block, 1, units, tokens, span)
        alive = working_set_bytes(module, inputs) / MB
        return speed.ms(module.graph.nodes), alive

    found = {size: of(*size) for size in sizes_of(block)}
    whole = (block.units, block.tokens)
    removed = [
        (float(tokens), of(0, tokens)[0] if block.residuals else 0.0)
        for tokens in sorted({tokens for _, tokens in found})
    ]
    return Sampled(
        {size: ms for size, (ms, _) in found.items()},
        tuple(removed),
        {size: alive for size, (_, alive) in found.items()},
        {span: of(*whole, span) for span in spans_of(sites, block)},
    )


def _transition(sites: Sites, speed: _Speed) -> Transition | None:
    """About fourteen tables [tokens, tokens] are read and written, and one product follows."""
    usable = [stream for stream in sites.streams if stream.why_not is None]
    if not usable:
        return None
    size = usable[0].tokens.size
    width = shape(usable[0].residual.add)[-1]
    tables = 2 * 14 * 4 * size * size / speed.bytes_per_ms
    product = 2 * size * size * width / speed.flops_per_ms
    return Transition(size, (0.0, 0.0, tables, product, 0.0))


def _is_matrix(node: fx.Node, source: fx.Node) -> bool:
    return is_call(node, ATEN.linear) and node.args[1] is source
