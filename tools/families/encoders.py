"""Text encoders."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from families.family import SIZES, family, padded_words, words

TRANSFORMER = ("heads", "ffn", "sublayer", "layer")


class First(nn.Module):
    """An encoder read at its first token."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.body(input_ids=input_ids).last_hidden_state
        assert isinstance(found, Tensor)
        return found[:, 0]


class Mean(nn.Module):
    """An encoder averaged over the real tokens, as for sentence embeddings."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        assert isinstance(found, Tensor)
        real = attention_mask.unsqueeze(-1).to(found.dtype)
        return (found * real).sum(1) / real.sum(1).clamp(min=1.0)


@family("bert", words(), (*TRANSFORMER, "tokens"))
def bert() -> nn.Module:
    """Devlin et al. 2018."""
    return First(BertModel(BertConfig(**SIZES), add_pooling_layer=False))


@family("roberta", words(), (*TRANSFORMER, "tokens"))
def roberta() -> nn.Module:
    """Liu et al. 2019: its positions are counted from the words that are no padding."""
    return First(RobertaModel(RobertaConfig(**SIZES), add_pooling_layer=False))


@family("distilbert", padded_words(), (*TRANSFORMER, "tokens"))
def distilbert() -> nn.Module:
    """Sanh et al. 2019."""
    return Mean(
        DistilBertModel(
            DistilBertConfig(
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=40,
                vocab_size=50,
                max_position_embeddings=24,
                initializer_range=0.3,
            )
        )
    )


@family("electra", words(), (*TRANSFORMER, "tokens"))
def electra() -> nn.Module:
    """Clark et al. 2020: narrow embeddings and a projection."""
    return First(ElectraModel(ElectraConfig(**SIZES, embedding_size=16)))


@family("mpnet", padded_words(), (*TRANSFORMER, "tokens"))
def mpnet() -> nn.Module:
    """Song et al. 2020: one relative bias for all layers; attention is written out."""
    return Mean(MPNetModel(MPNetConfig(**SIZES), add_pooling_layer=False))


@family("albert", words(), ("heads", "ffn", "sublayer", "tokens"))
def albert() -> nn.Module:
    """Lan et al. 2019: all layers have the same weights."""
    return First(AlbertModel(AlbertConfig(**SIZES, embedding_size=16), add_pooling_layer=False))


@family("deberta_v2", padded_words(), ("heads", "ffn", "sublayer", "layer"))
def deberta_v2() -> nn.Module:
    """He et al. 2021: words and places attend to each other apart, through gathers."""
    config = DebertaV2Config(
        **SIZES,
        relative_attention=True,
        position_buckets=6,
        pos_att_type=["c2p", "p2c"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
    )
    return Mean(DebertaV2Model(config))
