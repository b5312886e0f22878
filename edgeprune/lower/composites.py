"""``torch.ops.edgeprune`` as LiteRT composites: what our delegate runs, and any runtime can.

A composite is a name with attributes, and the plain operators inside that compute the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional

from edgeprune.lower import ops  # noqa: F401  # registers the operators
from edgeprune.lower.attention import MASKED_OUT

OURS = torch.ops.edgeprune


def as_composites(exported: ExportedProgram) -> ExportedProgram:
    """The program with a composite for each of our operators, for ``litert_torch`` to convert."""
    return exported.run_decompositions(
        {
            OURS.slim_attention.default: slim_attention,
            OURS.add_layer_norm.default: add_layer_norm,
        }
    )


def slim_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """``edgeprune.slim_attention``: q, k, v and perhaps a mask; see ``edgeprune.lower.ops``."""
    attributes = {"heads": heads, "kv_heads": kv_heads, "scale": scale, "causal": int(causal)}
    builder = _builder("edgeprune.slim_attention", attributes)
    q, k, v, *masks = builder.mark_inputs(*([q, k, v] if mask is None else [q, k, v, mask]))
    (batch, queries, _), keys = q.shape, k.shape[1]
    # Query heads that share a key-value head are more rows of one matmul.
    rows = heads // kv_heads * queries
    query = (q * scale).unflatten(2, (heads, -1)).transpose(1, 2).reshape(batch, kv_heads, rows, -1)
    key, value = (x.unflatten(2, (kv_heads, -1)).transpose(1, 2) for x in (k, v))
    scores = (query @ key.mT).reshape(batch, heads, queries, keys)
    for each in masks:
        scores = scores + each
    if causal:
        late = torch.arange(keys) > torch.arange(queries)[:, None]
        scores = scores + late.to(scores.dtype) * MASKED_OUT
    weights = scores.softmax(-1).reshape(batch, kv_heads, rows, keys)
    mixed = (weights @ value).reshape(batch, heads, queries, -1)
    out: Tensor = builder.mark_outputs(mixed.transpose(1, 2).flatten(2))
    return out


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``edgeprune.layer_norm``: x, weight, bias and perhaps a residual to the norm of their sum.

    The sum is a second output where something reads it.
    """
    builder = _builder("edgeprune.layer_norm", {"eps": eps})
    given = [x, weight, bias] if residual is None else [x, weight, bias, residual]
    inner, weight, bias, *added = builder.mark_inputs(*given)
    total = inner + added[0] if added else inner
    out = functional.layer_norm(total, total.shape[-1:], weight, bias, eps)
    if not added:
        return builder.mark_outputs(out), x
    both: tuple[Tensor, Tensor] = builder.mark_outputs(out, total)
    return both


def _builder(name: str, attributes: dict[str, Any]) -> Any:
    # Imported here: it takes seconds.
    from litert_torch.hlfb import StableHLOCompositeBuilder

    return StableHLOCompositeBuilder(name, attributes)
