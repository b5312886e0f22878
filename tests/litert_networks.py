"""Networks that call our operators, as a lowering puts them in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.lower import ops  # noqa: F401  # registers the operators
from edgeprune.lower.composites import as_composites
from edgeprune.lower.quiet import quiet

OURS = torch.ops.edgeprune
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
            OURS.slim_attention(q, k, v, mask, self.heads, self.kv_heads, scale, self.causal)
        )


class GroupedCausal(nn.Module):
    """``x [1, T, WIDTH]`` to the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = Attention(4, 2, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, None)


class FeedForward(nn.Module):
    """``x [1, T, WIDTH]`` to the same, with a norm of ours; the last layer has no bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(WIDTH, 96), nn.Linear(96, 48)
        self.out = nn.Linear(48, WIDTH, bias=False)
        self.norm = Norm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.down(functional.gelu(self.up(x))))
        return self.norm(self.out(y), x)[0]


class Norm(nn.LayerNorm):
    """Layer norm of a sum, and the sum."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return OURS.add_layer_norm(x, residual, self.weight, self.bias, self.eps)


class Layer(nn.Module):
    """Attention and a feed-forward network; the second sum is normalised only if ``post``."""

    def __init__(self, heads: int, post: bool) -> None:
        super().__init__()
        self.attention = Attention(heads, heads)
        self.up, self.down = nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH)
        self.norm1, self.norm2 = Norm(WIDTH), Norm(WIDTH) if post else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed, total = self.norm1(self.attention(x, mask), x)
        fed = self.down(functional.gelu(self.up(normed)))
        return self.norm2(fed, normed)[0] if self.norm2 else fed + total


class Encoder(nn.Module):
    """``x [1, T, WIDTH], mask [1, T]`` of 0 and 1 to ``[1, WIDTH]``: 2 attentions, 4 norms."""

    CLAIMED, LINEARS = 6, 12

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = Norm(WIDTH)
        self.layers = nn.ModuleList([Layer(4, post=True), Layer(3, post=False)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x, _ = self.norm(x)
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


def converted(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """A network as the bytes of a .tflite file."""
    with quiet(), torch.no_grad():
        import litert_torch

        composed = as_composites(torch.export.export(module.eval(), inputs))
        return bytes(litert_torch.convert(composed.module(), inputs).model_content())
