"""Networks that call our operators as a lowering will."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.lower.litert_ops import layer_norm, slim_attention

TOKENS, WIDTH, HEAD_DIM = 20, 64, 16


class Attention(nn.Module):
    """Projections around slim attention: ``[1, T, WIDTH]`` to the same."""

    def __init__(self, heads: int, kv_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.causal = heads, kv_heads, causal
        self.query = nn.Linear(WIDTH, heads * HEAD_DIM)
        self.key, self.value = (nn.Linear(WIDTH, kv_heads * HEAD_DIM) for _ in range(2))
        self.out = nn.Linear(heads * HEAD_DIM, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        scale = HEAD_DIM**-0.5
        return self.out(
            slim_attention(q, k, v, mask, self.heads, self.kv_heads, scale, self.causal)
        )


class GroupedCausal(nn.Module):
    """``x [1, T, WIDTH]`` to the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = Attention(4, 2, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, None)


class Norm(nn.LayerNorm):
    """Layer norm of a sum."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps, residual)


class Layer(nn.Module):
    """Attention and a feed-forward network, each with its sum and norm."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attention = Attention(heads, heads)
        self.up, self.down = nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH)
        self.norm1, self.norm2 = Norm(WIDTH), Norm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.attention(x, mask), x)
        return self.norm2(self.down(functional.gelu(self.up(x))), x)


class Encoder(nn.Module):
    """``x [1, T, WIDTH], mask [1, T]`` of 0 and 1 to ``[1, WIDTH]``: 2 attentions, 5 norms."""

    CLAIMED = 7

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = Norm(WIDTH)
        self.layers = nn.ModuleList(Layer(heads) for heads in (4, 3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        additive = (1.0 - mask[:, None, None]) * -1e9
        for layer in self.layers:
            x = layer(x, additive)
        return x.mean(1)


def grouped_inputs() -> tuple[Tensor]:
    return (torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)),)


def encoder_inputs() -> tuple[Tensor, Tensor]:
    mask = torch.ones(1, TOKENS)
    mask[:, TOKENS - 5 :] = 0
    return *grouped_inputs(), mask
