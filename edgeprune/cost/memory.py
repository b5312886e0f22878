"""Memory: the file's bytes by piece, the tensors alive at once, and what a process adds to them.

The resident set of a loaded model is its file (read and packed: one copy each way, measured at
1.00 MB per MB on x86-64 with ExecuTorch 1.5.1), the largest block's tensors, and a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from edgeprune.cost.blocks import Block, width_sites
from edgeprune.lower.lowering import Precision
from edgeprune.program.graph import ATEN, annotate, calls, value
from edgeprune.sites import Sites
from edgeprune.surgery.pieces import weights_of

MB = 2**20
# The runtime's share of the working set: chains of MiniLM's blocks at 64 and 128 tokens, 6 and 12
# heads, gave 0.66 to 0.83 on x86-64 with ExecuTorch 1.5.1.
USUAL_SHARE = 0.7
# Beside file and working set, and on top with selections, where nothing was measured (as above).
USUAL_CONSTANT_MB, USUAL_SELECTION_MB = 4.3, 1.9
SCALE_BYTES = 4
"""An int8 matrix has one float scale a row."""

VIEWS = (ATEN.view, ATEN.reshape, ATEN.unsqueeze, ATEN.squeeze, ATEN.expand)


def working_set_bytes(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> int:
    """The most bytes of activations that are alive at once, run in graph order."""
    annotate(module, inputs)
    nodes = list(module.graph.nodes)
    last_read = {
        source: place for place, node in enumerate(nodes) for source in node.all_input_nodes
    }
    alive, most = 0, 0
    dying: dict[int, int] = {}
    for place, node in enumerate(nodes):
        size = 0 if node.op in ("get_attr", "output") or _is_view(node) else _bytes(node)
        alive += size
        most = max(most, alive)
        end = last_read.get(node, place)
        dying[end] = dying.get(end, 0) + size
        alive -= dying.get(place, 0)
    return most


def tensor_bytes(sites: Sites, precision: Precision) -> dict[str, int]:
    """Path -> bytes in the lowered file, of every weight and buffer."""
    tensors = sites.program.tensors
    halved = {torch.float32: 2} if precision == "fp16" else {}
    found = {path: t.numel() * halved.get(t.dtype, t.element_size()) for path, t in tensors.items()}
    if precision == "int8":
        for node in calls(sites.program.module.graph, ATEN.linear):
            path = str(node.args[1].target)
            rows, columns = tensors[path].shape
            found[path] = rows * columns + SCALE_BYTES * rows
    return found


def block_weights_mb(
    sites: Sites, block: Block, sizes: Mapping[str, int]
) -> tuple[float, float, float]:
    """Of one member: all, what no unit of its main site carries, what stays when removed."""
    paths = _own_paths(sites, block)
    total = sum(sizes[path] for path in paths)
    if not block.residuals:
        return total / MB, total / MB, 0.0
    first = block.residuals[0]
    own = width_sites(sites, first)
    carried = {path for path, _ in own[0].weights} if own else set()
    closing = {str(n.target) for norm in first.closing_norms for n in norm.all_input_nodes}
    fixed = sum(sizes[path] for path in paths if path not in carried)
    removed = sum(sizes[path] for path in paths if path in closing)
    return total / MB, fixed / MB, removed / MB


def spanned_share(sites: Sites, block: Block, sizes: Mapping[str, int], name: str) -> float:
    """Of one member's bytes, the share that the units of a spanning site carry."""
    paths = _own_paths(sites, block)
    carried = {path for path, _ in sites.get(name).weights}
    total = sum(sizes[path] for path in paths)
    return sum(sizes[path] for path in paths if path in carried) / total if total else 0.0


def _own_paths(sites: Sites, block: Block) -> list[str]:
    """What several sub-layers share stays in the file until all of them go."""
    return [path for path in weights_of(sites, block.parts[0]) if path not in sites.shared]


def fit_memory(
    beside_mb: Sequence[float], working_sets_mb: Sequence[float], selected: Sequence[bool]
) -> tuple[float, float]:
    """What a process holds beside the file and its working set, and more once tokens are selected.

    Args:
        beside_mb: measured peak less the file, of whole models; at least one selects no tokens.
        working_sets_mb: of the blocks, at most.
        selected: whether the model selects tokens.

    Returns:
        The constant, and what selections add to it; both at least 0.
    """
    rest = np.asarray(beside_mb) - USUAL_SHARE * np.asarray(working_sets_mb)
    chosen = np.asarray(selected, dtype=np.bool_)
    constant = max(float(rest[~chosen].mean()), 0.0)
    more = float(rest[chosen].mean()) - constant if chosen.any() else 0.0
    return constant, max(more, 0.0)


def _is_view(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in VIEWS


def _bytes(node: fx.Node) -> int:
    found = value(node)
    return 0 if found is None else found.numel() * found.element_size()
