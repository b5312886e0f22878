"""Small models whose stream's width, vocabulary and tables can be cut: they end in a head."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from models import HEADS, LLAMA, NEURONS, WIDTH, WORDS, BertMean, VitFirst, inputs, word_ids
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from edgeprune.program import Program, capture
from edgeprune.sites import Sites, find_sites

LABELS = 5


class ClassifiedWords(BertMean):
    """BERT with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.head(super().forward(input_ids, attention_mask))
        assert isinstance(found, Tensor)
        return found


class ClassifiedImages(VitFirst):
    """ViT with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.head(super().forward(pixels))
        assert isinstance(found, Tensor)
        return found


class CausalLlama(nn.Module):
    """Hugging Face's Llama with its language model's head."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        config = deepcopy(LLAMA)
        config.tie_word_embeddings = tied
        self.lm = LlamaForCausalLM(config)

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.lm(input_ids=input_ids, use_cache=False).logits
        assert isinstance(found, Tensor)
        return found


class RmsBlock(nn.Module):
    """A pre-norm layer with PyTorch's own root mean square norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=0.1), nn.RMSNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.silu(self.up(self.norm2(x))))


class RmsModel(nn.Module):
    """A language model of such layers whose head is its table."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.layers = nn.ModuleList([RmsBlock(), RmsBlock()])
        self.norm = nn.RMSNorm(WIDTH, elementwise_affine=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(self.norm(x), self.words.weight)


MAKERS = {
    "rms": RmsModel,
    "llama_tied": lambda: CausalLlama(tied=True),
    "llama_untied": lambda: CausalLlama(tied=False),
    "bert": ClassifiedWords,
    "vit": ClassifiedImages,
}


def given(name: str, batch: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a model, in single precision."""
    return inputs(name, batch, seed) if name in ("bert", "vit") else (word_ids(batch, seed),)


@cache
def sites(name: str, dtype: torch.dtype = torch.float32) -> Sites:
    """The sites of a captured model; never change its program: all tests share it."""
    return find_sites(program(name, dtype))


@cache
def program(name: str, dtype: torch.dtype = torch.float32) -> Program:
    """A captured model, the same weights every time, with norms that are not the identity."""
    torch.manual_seed(0)
    model = MAKERS[name]().to(dtype).eval()
    for path, weight in model.named_parameters():
        if "norm" in path.lower() and path.endswith("weight"):
            nn.init.normal_(weight, 1.0, 0.2)
    examples = tuple(x.to(dtype) if x.is_floating_point() else x for x in given(name))
    return capture(model, examples)
