"""Text decoders, reading a whole prompt: the logits of every place come out."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from families.family import SIZES, family, words

DEPTH = ("sublayer", "layer")
GROUPED = ("kv_groups", "queries_per_group", "ffn", *DEPTH)


class Prefill(nn.Module):
    """A language model: logits [batch, tokens, vocabulary]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.body(input_ids=input_ids, use_cache=False).logits
        assert isinstance(found, Tensor)
        return found


@family("gpt2", words(), ("heads", "ffn", *DEPTH))
def gpt2() -> nn.Module:
    """Radford et al. 2019: one matrix for queries, keys and values, stored [in, out]."""
    config = GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=40,
        vocab_size=50,
        n_positions=24,
        initializer_range=0.3,
    )
    return Prefill(GPT2LMHeadModel(config))


@family("opt", words(), ("heads", "ffn", *DEPTH))
def opt() -> nn.Module:
    """Zhang et al. 2022."""
    config = OPTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=40,
        vocab_size=50,
        max_position_embeddings=24,
        word_embed_proj_dim=32,
        init_std=0.3,
    )
    return Prefill(OPTForCausalLM(config))


@family("llama", words(), GROUPED)
def llama() -> nn.Module:
    """Touvron et al. 2023: rotary positions, gated neurons, grouped queries."""
    return Prefill(LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)))


@family("qwen2", words(), GROUPED)
def qwen2() -> nn.Module:
    """Yang et al. 2024: grouped queries with biases, tied embeddings."""
    config = Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return Prefill(Qwen2ForCausalLM(config))


@family("gemma", words(), ("heads", "ffn", *DEPTH))
def gemma() -> nn.Module:
    """Gemma team 2024: one key and value head for all queries; heads wider than the stream."""
    return Prefill(GemmaForCausalLM(GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16)))


@family("mistral", words(), GROUPED)
def mistral() -> nn.Module:
    """Jiang et al. 2023: attention within a window."""
    return Prefill(
        MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=5))
    )


@family("gpt_neox", words(), ("heads", "ffn", *DEPTH))
def gpt_neox() -> nn.Module:
    """Black et al. 2022: both branches read the same stream; rotary on part of each head."""
    return Prefill(GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, rotary_pct=0.5)))
