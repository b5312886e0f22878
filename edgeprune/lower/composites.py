"""``torch.ops.edgeprune`` as LiteRT composites: what our delegate runs, and any runtime can.

A composite is a name with attributes, and the plain operators inside that compute the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional

from edgeprune.lower.attention import MASKED_OUT
from edgeprune.lower.ops import OURS
from edgeprune.surgery.selections import STEEP


def as_composites(exported: ExportedProgram) -> ExportedProgram:
    """The program with a composite for each of our operators, for ``litert_torch`` to convert."""
    return exported.run_decompositions(
        {
            OURS.slim_attention.default: slim_attention,
            OURS.slim_attention_scores.default: slim_attention_scores,
            OURS.token_select.default: token_select,
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
    builder = _builder("edgeprune.slim_attention", _attributes(heads, kv_heads, scale, causal))
    q, k, v, *masks = builder.mark_inputs(*([q, k, v] if mask is None else [q, k, v, mask]))
    weights = _weights(q * scale, k, masks, heads, kv_heads, causal)
    out: Tensor = builder.mark_outputs(_mixed(weights, v, kv_heads))
    return out


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
    """``edgeprune.slim_attention_scores``: q, k, v and perhaps a mask and which tokens are real."""
    attributes = _attributes(heads, kv_heads, scale, causal)
    builder = _builder("edgeprune.slim_attention_scores", attributes)
    given = [each for each in (q, k, v, mask, real) if each is not None]
    q, k, v, *rest = builder.mark_inputs(*given)
    weights = _weights(q * scale, k, rest[:1], heads, kv_heads, causal)
    if rest:
        held = rest[1]
        received = (held[:, None, None] @ weights).sum((1, 2)) * held + (held - 1)
    else:
        received = weights.sum((1, 2))
    both: tuple[Tensor, Tensor] = builder.mark_outputs(_mixed(weights, v, kv_heads), received)
    return both


def token_select(x: Tensor, scores: Tensor, pinned: Tensor | None, keep: int, axis: int) -> Tensor:
    """``edgeprune.token_select``: x, scores and perhaps pinned."""
    builder = _builder("edgeprune.token_select", {"keep": keep, "axis": x.dim() + axis})
    inner, ranked, *added = builder.mark_inputs(
        *([x, scores] if pinned is None else [x, scores, pinned])
    )
    matrix = _one_hot(ranked + added[0] if added else ranked, keep)[0]
    out: Tensor = builder.mark_outputs(matrix @ inner if axis == -2 else inner @ matrix.mT)
    return out


def _one_hot(scores: Tensor, keep: int) -> Tensor:
    """[1, kept, tokens] in arithmetic that every runtime delegates, as surgery writes it."""
    tokens = scores.shape[1]
    earlier = torch.ones(tokens, tokens).tril(-1)
    sign = scores[:, None] - scores[:, :, None]
    for _ in range(2):
        sign = (sign * STEEP).clamp(-1.0, 1.0)
    beats = sign.clamp(0.0, 1.0) + (1.0 - sign * sign) * earlier
    kept = (keep - beats.sum(-1, keepdim=True)).clamp(0.0, 1.0)
    distance = (earlier @ kept - torch.arange(keep)).abs()
    return ((1.0 - distance).clamp(0.0, 1.0) * kept).mT


def _attributes(heads: int, kv_heads: int, scale: float, causal: bool) -> dict[str, Any]:
    return {"heads": heads, "kv_heads": kv_heads, "scale": scale, "causal": int(causal)}


def _weights(
    q: Tensor, k: Tensor, masks: list[Tensor], heads: int, kv_heads: int, causal: bool
) -> Tensor:
    """The probabilities, [batch, heads, queries, keys]."""
    (batch, queries, _), keys = q.shape, k.shape[1]
    # Query heads that share a key-value head are more rows of one matmul.
    rows = heads // kv_heads * queries
    query = q.unflatten(2, (heads, -1)).transpose(1, 2).reshape(batch, kv_heads, rows, -1)
    key = k.unflatten(2, (kv_heads, -1)).transpose(1, 2)
    scores = (query @ key.mT).reshape(batch, heads, queries, keys)
    for each in masks:
        scores = scores + each
    if causal:
        late = torch.arange(keys) > torch.arange(queries)[:, None]
        scores = scores + late.to(scores.dtype) * MASKED_OUT
    return scores.softmax(-1)


def _mixed(weights: Tensor, v: Tensor, kv_heads: int) -> Tensor:
    (batch, heads, queries, keys) = weights.shape
    value = v.unflatten(2, (kv_heads, -1)).transpose(1, 2)
    grouped = weights.reshape(batch, kv_heads, heads // kv_heads * queries, keys)
    mixed = (grouped @ value).reshape(batch, heads, queries, -1)
    return mixed.transpose(1, 2).flatten(2)


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
