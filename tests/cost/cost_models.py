"""Small models that the cost tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.program import Program, capture

TOKENS, WIDTH, HEADS, NEURONS, WORDS = 16, 32, 4, 64, 50


class Attention(nn.Module):
    """Masked self-attention on ``[batch, tokens, width]``."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(x).view(x.shape[0], x.shape[1], -1, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class Layer(nn.Module):
    """A post-norm encoder layer, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token numbers and a 0/1 mask to one vector: ``([b, T], [b, T]) -> [b, width]``."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        additive = (1.0 - mask.to(torch.float32))[:, None, None, :] * -1e9
        hidden = self.words(ids)
        for layer in self.layers:
            hidden = layer(hidden, additive)
        weight = mask.unsqueeze(-1).to(torch.float32)
        return (hidden * weight).sum(1) / weight.sum(1)


def encoder(layers: int = 3) -> Program:
    torch.manual_seed(0)
    ids = torch.randint(0, WORDS, (2, TOKENS))
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, TOKENS - 3 :] = 0
    return capture(Encoder(layers).eval(), (ids, mask))
