"""digits-vit: trained once, the same everywhere, and good enough to be worth pruning."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.program import capture
from edgeprune.task import Batch, check_task
from edgeprune.tasks import digits_vit
from edgeprune.tasks.digits_vit import DigitsVit

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("digits")


@pytest.mark.nightly
def test_the_trained_network_reads_at_least_94_of_100_digits(
    digits: DigitsVit, digits_model: nn.Module
) -> None:
    def predict(inputs: Batch) -> Tensor:
        return digits_model(*inputs)

    hits = digits.evaluate(predict)
    assert isinstance(hits, np.ndarray) and hits.shape == (360,)
    assert hits.mean() >= 0.94
    assert np.mean(digits.validate(predict)) >= 0.94


def test_training_is_seeded_and_its_weights_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits_vit, "STEPS", 2)
    states = []
    for folder in ("one", "two"):
        monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / folder))
        torch.rand(1)  # training must not depend on what was drawn before
        states.append(DigitsVit().model().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    monkeypatch.setattr(digits_vit, "train", None)
    again = DigitsVit().model().state_dict()
    assert all(torch.equal(states[0][name], again[name]) for name in again)


def test_no_image_is_in_two_splits() -> None:
    images = [split_images for split_images, _ in DigitsVit().splits.values()]
    assert [len(each) for each in images] == [240, 240, 360, 957]
    together = torch.cat(images).flatten(1)
    assert len(together.unique(dim=0)) == len(together)


def test_batches_fit_the_example_inputs_and_training_is_endless() -> None:
    digits = DigitsVit()
    check_task(digits)
    assert sum(len(images) for (images,) in digits.calibration()) == 240
    stream, again = digits.train_batches(), digits.train_batches()
    for (first,), (second,) in islice(zip(stream, again, strict=True), 40):
        assert first.shape == (32, 1, 8, 8)
        assert torch.equal(first, second)


@pytest.mark.nightly
def test_attention_stays_whole_in_the_captured_graph(
    digits: DigitsVit, digits_model: nn.Module
) -> None:
    program = capture(digits_model, digits.example_inputs(), input_names=digits.input_names)
    targets = [node.target for node in program.module.graph.nodes]
    assert targets.count(torch.ops.aten.scaled_dot_product_attention.default) == 4
