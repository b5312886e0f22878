"""What the tests of validation share: a small text encoder, and a task for it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from edgeprune.program import Program
from edgeprune.program.graph import get_attribute
from edgeprune.task import Batch, Predict, Score, Task, output_tuple

TOKENS = 16


class Encoder(nn.Module):
    """A small BERT, mean-pooled over real tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = BertModel(
            BertConfig(
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=384,
                vocab_size=100,
                initializer_range=0.2,
            )
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * real).sum(1) / real.sum(1)


def texts(seed: int, count: int) -> Batch:
    """Token numbers and masks of texts of 6 tokens and more."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 100, (count, TOKENS), generator=random)
    lengths = torch.randint(6, TOKENS + 1, (count, 1), generator=random)
    mask = (torch.arange(TOKENS)[None] < lengths).long()
    return ids * mask, mask


class Signs(Task):
    """Which side of zero the first numbers of the uncut encoder's output are on."""

    score_name = "accuracy"

    def model(self) -> nn.Module:
        return Encoder().eval()

    def example_inputs(self) -> Batch:
        return texts(0, 3)

    def calibration(self) -> Iterable[Batch]:
        return [texts(seed, 10) for seed in (1, 2)]

    def evaluate(self, predict: Predict) -> Score:
        inputs = texts(3, 40)
        with torch.no_grad():
            wanted = self.model()(*inputs)
        return ((output_tuple(predict(inputs))[0] > 0) == (wanted > 0)).double().mean(1).numpy()


def changed(program: Program, ending: str, change: float, seed: int = 0) -> Program:
    """The program with noise added to the weights whose path ends so."""
    module = copy.deepcopy(program.module)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path in program.tensors:
            if path.endswith(ending):
                weight = get_attribute(module, path)
                weight.add_(change * torch.randn(weight.shape, generator=random))
    return replace(program, module=module)
