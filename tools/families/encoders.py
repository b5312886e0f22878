"""Text encoders."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from families.family import family, words

TRANSFORMER = ("heads", "ffn", "d_model", "sublayer", "layer")


class First(nn.Module):
    """An encoder read at its first token."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.body(input_ids=input_ids).last_hidden_state
        assert isinstance(found, Tensor)
        return found[:, 0]


@family("bert", words(), (*TRANSFORMER, "tokens"))
def bert() -> nn.Module:
    """Devlin et al. 2018."""
    return First(
        BertModel(
            BertConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=40,
                vocab_size=50,
                max_position_embeddings=24,
                initializer_range=0.3,
            ),
            add_pooling_layer=False,
        )
    )
