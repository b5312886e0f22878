"""Small models that the tests capture, analyse and cut, each captured once per process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, ViTConfig, ViTModel

from edgeprune.program import Program, capture
from edgeprune.sites import Sites, find_sites

WIDTH, NEURONS, HEADS, TOKENS, WORDS, BATCH = 32, 40, 4, 12, 50, 3
QUERIES_PER_GROUP = 2

BERT = BertConfig(
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=NEURONS,
    vocab_size=WORDS,
    max_position_embeddings=2 * TOKENS,
    initializer_range=0.3,
)
VIT = ViTConfig(
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=NEURONS,
    image_size=16,
    patch_size=4,
    num_channels=1,
    initializer_range=0.3,
)
LLAMA = LlamaConfig(
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS // QUERIES_PER_GROUP,
    intermediate_size=NEURONS,
    vocab_size=WORDS,
    initializer_range=0.3,
)


class BertMean(nn.Module):
    """Hugging Face's BERT, averaged over the real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(BERT, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(found.dtype)
        return (found * real).sum(1) / real.sum(1).clamp(min=1.0)


class BertFirst(nn.Module):
    """Hugging Face's BERT, read at its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(BERT, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return found[:, 0]


class VitFirst(nn.Module):
    """Hugging Face's ViT, read at its class token."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViTModel(VIT, add_pooling_layer=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vit(pixel_values=pixels).last_hidden_state[:, 0]


class LlamaLast(nn.Module):
    """Hugging Face's Llama (RMSNorm, SwiGLU, rotary, grouped queries), read at its last token."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = LlamaModel(LLAMA)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.llama(input_ids=input_ids, use_cache=False).last_hidden_state[:, -1]


class FusedBlock(nn.Module):
    """A pre-norm layer whose queries, keys and values come out of one matrix."""

    def __init__(self, sliced: bool) -> None:
        super().__init__()
        self.sliced = sliced
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x))
        parts = qkv.chunk(3, dim=-1)
        if self.sliced:
            one, two = WIDTH, 2 * WIDTH
            parts = (qkv[..., :one], qkv[..., one:two], qkv[..., two:])
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Fused(nn.Module):
    """Two fused layers over ready-made token vectors, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(8, WIDTH)
        self.layers = nn.ModuleList([FusedBlock(sliced) for sliced in (False, True)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


class GroupedBlock(nn.Module):
    """A pre-norm layer that leaves grouped queries to PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        groups = HEADS // QUERIES_PER_GROUP
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = (nn.Linear(WIDTH, groups * WIDTH // HEADS) for _ in range(2))
        self.up, self.down = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        read = self.norm1(x)
        q, k, v = (
            matrix(read).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for matrix in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Grouped(nn.Module):
    """Two grouped layers under a hand-made mask of -inf, averaged over the real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GroupedBlock(), GroupedBlock()])

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        mask = torch.zeros_like(real, dtype=x.dtype).masked_fill(real == 0, float("-inf"))
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        weight = real.unsqueeze(-1).to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


class TorchEncoder(nn.Module):
    """PyTorch's own encoder, which puts the batch second inside, read at its first token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, NEURONS, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[:, 0]


class Residual(nn.Module):
    """A separable convolution with batch norm, in place where it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(8, 12, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(12), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.norm1(self.expand(x)), inplace=True)
        y = self.norm2(self.project(self.depthwise(y).sigmoid()))
        y += x
        return y


class Convolutional(nn.Module):
    """A MobileNet in miniature."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Residual(), Residual())
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(self.stem(pixels).relu())
        return self.head(functional.max_pool2d(x, 2).flatten(1))


class DenselyConnected(nn.Module):
    """A DenseNet in miniature: every layer reads all that came before, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(10)
        self.third = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.first(pixels)
        y = self.second(self.norm(x).relu())
        z = self.third(self.norm2(torch.cat([x, y], dim=1)).relu())
        return self.head(z.relu().mean((2, 3)))


def word_ids(batch: int, seed: int) -> Tensor:
    """Word numbers [batch, tokens]."""
    return torch.randint(0, WORDS, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))


def padding(batch: int) -> Tensor:
    """An attention mask [batch, tokens] whose rows are whole, half and nearly all padding."""
    real = torch.tensor([TOKENS, TOKENS // 2, 2]).repeat(batch)[:batch]
    return (torch.arange(TOKENS)[None] < real[:, None]).long()


def noise(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, the same on every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(batch: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs of the BERT models."""
    return word_ids(batch, seed), padding(batch)


def vectors(batch: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs of the grouped model."""
    return noise(batch, TOKENS, WIDTH, seed=seed), padding(batch)


def images(batch: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs of the ViT."""
    return (noise(batch, 1, 16, 16, seed=seed),)


def small_images(batch: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs of the convolutional models."""
    return (noise(batch, 1, 8, 8, seed=seed),)


MODELS: dict[str, tuple[type[nn.Module], Callable[[int, int], tuple[Tensor, ...]]]] = {
    "bert": (BertMean, words),
    "bert_first": (BertFirst, words),
    "vit": (VitFirst, images),
    "llama": (LlamaLast, lambda batch, seed: (word_ids(batch, seed),)),
    "fused": (Fused, lambda batch, seed: (noise(batch, TOKENS, 8, seed=seed),)),
    "grouped": (Grouped, vectors),
    "torch_encoder": (TorchEncoder, lambda batch, seed: (noise(batch, TOKENS, WIDTH, seed=seed),)),
    "convolutional": (Convolutional, small_images),
    "densely_connected": (DenselyConnected, small_images),
}
WITH_TOKENS = ("bert", "bert_first", "vit", "llama", "fused", "grouped", "torch_encoder")


def model(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A new model, the same weights every time, with norms that are not the identity."""
    torch.manual_seed(0)
    built = MODELS[name][0]().to(dtype).eval()
    for module in built.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0.0, 0.3)
    return built


def inputs(
    name: str, batch: int = BATCH, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Example inputs of a model."""
    made = MODELS[name][1](batch, seed)
    return tuple(each.to(dtype) if each.is_floating_point() else each for each in made)


@cache
def program(name: str, dtype: torch.dtype = torch.float32) -> Program:
    """A captured model. Never change it: all tests share it."""
    return capture(model(name, dtype), inputs(name, dtype=dtype))


@cache
def sites(name: str, dtype: torch.dtype = torch.float32) -> Sites:
    """The sites of :func:`program`."""
    return find_sites(program(name, dtype))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest wanted value."""
    got, wanted = got.detach(), wanted.detach()
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
