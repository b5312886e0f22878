"""``torch.ops.edgeprune``: the operators that our delegate runs.

Here in eager PyTorch they are computed the plain way, so that a lowered model can always be
checked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional

OURS = torch.ops.edgeprune
ACTIVATIONS = {"none": lambda x: x, "relu": functional.relu, "gelu": functional.gelu}


@custom_op("edgeprune::slim_attention", mutates_args=())
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
    """Attention on tensors as projections write them: no transposes.

    Args:
        q: ``[batch, queries, heads * head_dim]``.
        k, v: ``[batch, keys, kv_heads * head_dim]``.
        mask: added to the scores, ``[batch or 1, heads or 1, queries or 1, keys]``.
    """
    queries, keys, values = (
        each.float().unflatten(2, (count, -1)).transpose(1, 2)
        for each, count in ((q, heads), (k, kv_heads), (v, kv_heads))
    )
    if causal:
        late = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1)
        never = torch.zeros(late.shape).masked_fill(late, -torch.inf)
        mask = never if mask is None else mask + never
    mixed = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=heads != kv_heads
    )
    return mixed.transpose(1, 2).flatten(2).to(q.dtype)


@slim_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(q)


# The form that ExecuTorch calls outside a delegate, into memory that it has planned.
_OUT = torch.library.Library("edgeprune", "FRAGMENT")
_OUT.define(
    "slim_attention.out(Tensor q, Tensor k, Tensor v, Tensor? mask, SymInt heads, "
    "SymInt kv_heads, float scale, bool causal, *, Tensor(a!) out) -> Tensor(a!)"
)


@torch.library.impl(_OUT, "slim_attention.out", "CompositeExplicitAutograd")
def _slim_attention_out(*inputs: object, out: Tensor) -> Tensor:
    return out.copy_(slim_attention(*inputs))


@custom_op("edgeprune::slim_attention_scores", mutates_args=())
def slim_attention_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    real: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """``slim_attention`` of tokens among themselves, and a score of each.

    Args:
        real: ``[batch, tokens]``, 1 for tokens and 0 for padding; None: all are real.

    Returns:
        What ``slim_attention`` does, and ``[batch, tokens]``: the attention that a token receives
        from real tokens, over all heads; of padding -1.
    """
    queries, keys = (
        each.float().unflatten(2, (count, -1)).transpose(1, 2)
        for each, count in ((q, heads), (k, kv_heads))
    )
    scores = queries @ keys.repeat_interleave(heads // kv_heads, 1).mT * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        late = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(late, -torch.inf)
    weights = scores.softmax(-1)
    if real is None:
        received = weights.sum((1, 2))
    else:
        received = (weights * real[:, None, :, None]).sum((1, 2)) * real + (real - 1)
    return slim_attention(q, k, v, mask, heads, kv_heads, scale, causal), received


@slim_attention_scores.register_fake
def _(q: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


@custom_op("edgeprune::token_select", mutates_args=())
def token_select(x: Tensor, scores: Tensor, pinned: Tensor | None, keep: int, axis: int) -> Tensor:
    """The tokens of the highest scores, in the order that they had; of equals, the first.

    Args:
        x: with tokens in dimension ``axis``, batch 1.
        scores: ``[1, tokens]``, float32.
        pinned: ``[1, tokens]``, added to the scores.
        keep: how many stay.
        axis: from the right: -1, -2...
    """
    ranked = scores if pinned is None else scores + pinned
    best = ranked[0].sort(descending=True, stable=True).indices[:keep]
    return x.index_select(axis, best.sort().values)


@token_select.register_fake
def _(x: Tensor, scores: Tensor, pinned: Tensor | None, keep: int, axis: int) -> Tensor:
    sizes = list(x.shape)
    sizes[axis] = keep
    return x.new_empty(sizes)


@custom_op("edgeprune::add_layer_norm", mutates_args=())
def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The layer norm of ``x + residual`` over the last dimension, and that sum."""
    total = x.float() if residual is None else x.float() + residual.float()
    normed = functional.layer_norm(total, total.shape[-1:], weight, bias, eps)
    return normed.to(x.dtype), total.to(x.dtype, copy=residual is None)


@add_layer_norm.register_fake
def _(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@custom_op("edgeprune::linear_int8", mutates_args=())
def linear_int8(
    x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    """A linear layer on 8 bits: ``x`` is quantised at run time, every row by itself.

    Args:
        weight: int8 ``[out, in]``.
        scales: of the weight, ``[out]``.
        activation: of ``ACTIVATIONS``.
    """
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    step = ((x.amax(-1, keepdim=True).clamp(min=0.0) - low) / 255).clamp(min=1e-30)
    zero = (-low / step).round()
    rows = ((x / step).round() + zero).clamp(0, 255) - zero
    products = functional.linear(rows.double(), weight.double()) * (step * scales).double()
    summed = products.float() if bias is None else products.float() + bias
    return ACTIVATIONS[activation](summed)


@linear_int8.register_fake
def _(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
