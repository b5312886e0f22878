"""Our operators as LiteRT composites: what our delegate runs, and any runtime can.

Each function computes in PyTorch what its composite's decomposition will; the converter keeps
both, the name with its attributes and the operators inside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SLIM_ATTENTION = "edgeprune.slim_attention"
LAYER_NORM = "edgeprune.layer_norm"
MASKED_OUT = -1e9


def slim_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
) -> Tensor:
    """``softmax(scale · q kᵀ + mask) v`` on tensors as projections write them.

    Args:
        q: ``[batch, queries, heads * head_dim]``, float32.
        k, v: ``[batch, keys, kv_heads * head_dim]``.
        mask: added to the scaled products, ``[batch or 1, heads or 1, queries or 1, keys]``.
        causal: query ``i`` reads keys 0 to ``i``.

    Returns:
        ``[batch, queries, heads * head_dim]``.
    """
    from litert_torch.hlfb import StableHLOCompositeBuilder

    attributes = {"heads": heads, "kv_heads": kv_heads, "scale": scale, "causal": int(causal)}
    builder = StableHLOCompositeBuilder(SLIM_ATTENTION, attributes)
    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    q, k, v, *masks = builder.mark_inputs(*inputs)
    (batch, queries, _), keys = q.shape, k.shape[1]
    # Query heads that share a key-value head are more rows of one matmul.
    rows = heads // kv_heads * queries
    query = (q * scale).unflatten(2, (heads, -1)).transpose(1, 2).reshape(batch, kv_heads, rows, -1)
    key, value = (x.unflatten(2, (kv_heads, -1)).transpose(1, 2) for x in (k, v))
    scores = (query @ key.mT).reshape(batch, heads, queries, keys)
    for added in masks:
        scores = scores + added
    if causal:
        late = torch.arange(keys) > torch.arange(queries)[:, None]
        scores = scores + late.to(scores.dtype) * MASKED_OUT
    weights = scores.softmax(-1).reshape(batch, kv_heads, rows, keys)
    mixed = (weights @ value).reshape(batch, heads, queries, -1)
    out: Tensor = builder.mark_outputs(mixed.transpose(1, 2).flatten(2))
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    """Layer norm of ``x + residual`` over the last dimension.

    Args:
        x, residual: ``[..., width]``, float32.
        weight, bias: ``[width]``.
    """
    from litert_torch.hlfb import StableHLOCompositeBuilder

    builder = StableHLOCompositeBuilder(LAYER_NORM, {"eps": eps})
    inputs = (x, weight, bias) if residual is None else (x, weight, bias, residual)
    x, weight, bias, *added = builder.mark_inputs(*inputs)
    for each in added:
        x = x + each
    out: Tensor = builder.mark_outputs(functional.layer_norm(x, (x.shape[-1],), weight, bias, eps))
    return out
