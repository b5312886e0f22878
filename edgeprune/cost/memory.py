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
from edgeprune.lower.artifact import Precision
from edgeprune.program.graph import ATEN, annotate, calls, value
from edgeprune.sites import Sites
from edgeprune.surgery.pieces import closing_norms, weights_of

MB = 2**20
# Beside the file, where nothing was measured: seen on x86-64 with ExecuTorch 1.5.1.
USUAL_CONSTANT_MB, USUAL_SHARE = 3.0, 0.7
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
    found = {path: t.numel() * t.element_size() for path, t in tensors.items()}
    if precision == "int8":
        for node in calls(sites.program.module.graph, ATEN.linear):
            path = str(node.args[1].target)
            rows, columns = tensors[path].shape
            found[path] = rows * columns + SCALE_BYTES * rows
    return found


def block_weights_mb(
    sites: Sites, block: Block, sizes: Mapping[str, int]
) -> tuple[float, float, float]:
    """Of one sub-layer: all, what no unit of its main site carries, what stays when removed."""
    first = block.residuals[0]
    own = width_sites(sites, first)
    carried = {path for path, _ in own[0].weights} if own else set()
    paths = weights_of(sites, first)
    closing = {str(n.target) for norm in closing_norms(first) for n in norm.all_input_nodes}
    total = sum(sizes[path] for path in paths)
    fixed = sum(sizes[path] for path in paths if path not in carried)
    removed = sum(sizes[path] for path in paths if path in closing)
    return total / MB, fixed / MB, removed / MB


def fit_memory(excess_mb: Sequence[float], working_sets_mb: Sequence[float]) -> tuple[float, float]:
    """Constant and share of the working set that explain peak memory beside the file.

    Both stay at least 0; the share at most 2, beyond which the two could not be told apart.
    """
    rows = np.stack([np.ones(len(excess_mb)), np.asarray(working_sets_mb)], axis=1)
    if len(excess_mb) < 2 or np.ptp(working_sets_mb) < 0.05:
        share = USUAL_SHARE
    else:
        share = float(np.clip(np.linalg.lstsq(rows, np.asarray(excess_mb), rcond=None)[0][1], 0, 2))
    constant = float(np.mean(np.asarray(excess_mb) - share * np.asarray(working_sets_mb)))
    return max(constant, 0.0), share


def _is_view(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in VIEWS


def _bytes(node: fx.Node) -> int:
    found = value(node)
    return 0 if found is None else found.numel() * found.element_size()
