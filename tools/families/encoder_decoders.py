"""Encoder-decoders: text or sound in, the logits of every output place out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from families.family import family

AXES = ("heads", "ffn", "sublayer", "layer")
WORDS, SOURCE, TARGET, FRAMES, BINS = 50, 12, 7, 20, 6


class Text(nn.Module):
    """Reads a text and its padding, and what was written so far."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor, written: Tensor) -> Tensor:
        found = self.body(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=written,
            use_cache=False,
        ).logits
        assert isinstance(found, Tensor)
        return found


class Sound(nn.Module):
    """Reads a spectrogram [batch, bins, frames] and what was written so far."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, spectrogram: Tensor, written: Tensor) -> Tensor:
        found = self.body(
            input_features=spectrogram, decoder_input_ids=written, use_cache=False
        ).logits
        assert isinstance(found, Tensor)
        return found


def _texts(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    real = torch.randint(2, SOURCE + 1, (batch, 1), generator=generator)
    return (
        torch.randint(0, WORDS, (batch, SOURCE), generator=generator),
        (torch.arange(SOURCE)[None] < real).long(),
        torch.randint(0, WORDS, (batch, TARGET), generator=generator),
    )


def _sounds(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    return (
        torch.randn(batch, BINS, FRAMES, generator=generator),
        torch.randint(0, WORDS, (batch, TARGET), generator=generator),
    )


@family("t5", _texts, AXES)
def t5() -> nn.Module:
    """Raffel et al. 2019: one relative bias for all layers of a stack; no scale, no biases."""
    return Text(
        T5ForConditionalGeneration(
            T5Config(
                d_model=32,
                d_kv=8,
                d_ff=40,
                num_layers=2,
                num_heads=4,
                vocab_size=WORDS,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=10,
                feed_forward_proj="gated-gelu",
                initializer_factor=0.5,
            )
        )
    )


@family("bart", _texts, AXES)
def bart() -> nn.Module:
    """Lewis et al. 2019."""
    return Text(
        BartForConditionalGeneration(
            BartConfig(
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=40,
                decoder_ffn_dim=40,
                vocab_size=WORDS,
                max_position_embeddings=24,
                init_std=0.3,
            )
        )
    )


@family("whisper", _sounds, (*AXES, "channels"))
def whisper() -> nn.Module:
    """Radford et al. 2022: two convolutions before the encoder."""
    return Sound(
        WhisperForConditionalGeneration(
            WhisperConfig(
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=40,
                decoder_ffn_dim=40,
                vocab_size=WORDS,
                num_mel_bins=BINS,
                max_source_positions=FRAMES // 2,
                max_target_positions=24,
                init_std=0.3,
                pad_token_id=1,
                bos_token_id=2,
                eos_token_id=3,
                decoder_start_token_id=4,
                suppress_tokens=None,
                begin_suppress_tokens=None,
            )
        )
    )
