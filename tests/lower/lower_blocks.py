"""Small models that the lowering tests share."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.lower import Lowered, Lowering, lower_graph

TOKENS, WIDTH, HEADS = 12, 32, 4


class Block(nn.Module):
    """A post-norm encoder layer, as in BERT: ``(x [1, T, d], mask [1, 1, 1, T]) -> [1, T, d]``."""

    def __init__(self, heads: int = HEADS, ffn: int = 64) -> None:
        super().__init__()
        self.heads, self.head_width = heads, WIDTH // HEADS
        inner = heads * self.head_width
        self.query, self.key, self.value = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out = nn.Linear(inner, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, ffn), nn.Linear(ffn, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(x).view(x.shape[0], x.shape[1], self.heads, self.head_width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token numbers and a 0/1 mask to one vector: ``([1, T], [1, T]) -> [1, d]``."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        additive = (1.0 - mask.to(torch.float32))[:, None, None, :] * -1e9
        hidden = self.norm(self.tokens(ids))
        for layer in self.layers:
            hidden = layer(hidden, additive)
        weight = mask.unsqueeze(-1).to(torch.float32)
        return (hidden * weight).sum(1) / weight.sum(1)


def encoder(layers: int = 2, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(layers).eval()


def encoder_inputs(rows: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 50, (rows, TOKENS), generator=generator)
    mask = torch.ones(rows, TOKENS, dtype=torch.int64)
    mask[:, TOKENS - 3 :] = 0
    return ids, mask


@functools.cache
def lowered_encoder(lowering: Lowering) -> Lowered:
    """The encoder for one example, lowered once: it takes seconds."""
    return lower_graph(encoder(), encoder_inputs(), lowering)


def assert_same_bytes_elsewhere(here: dict[Lowering, Lowered]) -> None:
    """Another process, with other hashes, lowers the encoder to these files, and says nothing."""
    script = (
        "from hashlib import sha256\n"
        "from edgeprune.lower import Lowering, lower_graph\n"
        "from lower_blocks import encoder, encoder_inputs\n"
        f"for how in {list(here)!r}:\n"
        "    data = lower_graph(encoder(), encoder_inputs(), how).data\n"
        "    print(sha256(data).hexdigest())\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}."},
    )
    assert there.stdout.split() == [sha256(file.data).hexdigest() for file in here.values()]
    assert there.stderr == ""
