"""minilm-20news: real weights, honest splits, a head that stays as it is."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.build import build
from edgeprune.program import capture
from edgeprune.task import Recorded, check_task, cosines
from edgeprune.tasks import minilm_20news
from edgeprune.tasks.minilm_20news import MinilmNews, embed, encode, split_posts, truncated
from edgeprune.tasks.newsgroups import Posts

TEXTS = (
    "the goalie stopped every shot of the final",
    "the keeper saved all the penalties in the last match",
    "orbit of the satellite " * 60,
)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return MinilmNews().model()


def inputs_of(texts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, lengths = encode(texts)
    mask = torch.arange(128) < torch.from_numpy(lengths)[:, None]
    return torch.from_numpy(ids.astype(np.int64)), mask.long()


def test_the_real_weights_know_what_texts_mean(encoder: nn.Module) -> None:
    keeper, goalie, satellite = embed(encoder, inputs_of(TEXTS))
    assert keeper.shape == (384,)
    assert torch.cosine_similarity(keeper, goalie, 0) > 0.5
    assert torch.cosine_similarity(keeper, satellite, 0) < 0.2


def test_embedding_without_padding_changes_nothing(encoder: nn.Module) -> None:
    inputs = inputs_of(TEXTS)
    with torch.inference_mode():
        assert torch.allclose(embed(encoder, inputs), encoder(*inputs), atol=1e-5)


def test_the_model_is_captured_with_its_six_attentions_whole(encoder: nn.Module) -> None:
    program = capture(encoder, inputs_of(TEXTS[:2]), input_names=MinilmNews.input_names)
    targets = [node.target for node in program.module.graph.nodes]
    assert targets.count(torch.ops.aten.scaled_dot_product_attention.default) == 6
    assert program.input_names == ("input_ids", "attention_mask")


def test_truncated_inputs_are_those_of_a_shorter_tokenizer() -> None:
    ids, mask = inputs_of(TEXTS)
    short_ids, short_mask = truncated((ids, mask), 16)
    assert torch.equal(short_ids[:2], ids[:2, :16])
    assert short_mask.sum(1).tolist() == [mask[0].sum(), mask[1].sum(), 16]
    assert short_ids[2].tolist() == [*ids[2, :15].tolist(), 102]


def test_the_four_splits_are_disjoint_and_seeded() -> None:
    train = Posts(tuple(f"post {i % 7000}" for i in range(7500)), ("a",) * 7500)
    test = Posts(tuple(f"post {i}" for i in range(6900, 7100)), ("a",) * 200)
    splits = split_posts(train, test)
    assert {name: len(posts.texts) for name, posts in splits.items()} == {
        "validation": 1000,
        "head": 5000,
        "calibration": 900,
        "test": 200,
    }
    assert len(set().union(*(posts.texts for posts in splits.values()))) == 7100
    assert split_posts(train, test) == splits


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_dense_model_scores_what_the_docs_say_and_truncation_costs() -> None:
    task = MinilmNews()
    check_task(task)
    encoder = task.model()
    dense = Recorded(lambda inputs: encoder(*inputs))
    hits = task.evaluate(dense)
    assert isinstance(hits, np.ndarray) and hits.shape == (7528,)
    assert hits.mean() == pytest.approx(0.7635, abs=0.003)

    short = Recorded(lambda inputs: encoder(*truncated(inputs, 64)))
    assert np.mean(task.evaluate(short)) < hits.mean() - 0.02
    assert 0.8 < cosines(short.answers, dense.answers).mean() < 0.95


@pytest.mark.nightly
def test_no_post_is_in_two_splits_and_training_batches_are_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = MinilmNews()
    splits = ("validation", "head", "calibration", "test")
    posts = {name: {row.tobytes() for row in task._data[f"{name}_ids"]} for name in splits}
    # Longer posts may share their first 128 tokens.
    assert all(
        len(posts[one] & posts[two]) < 0.01 * len(posts[two])
        for one in splits
        for two in splits
        if one != two
    )
    assert sum(len(ids) for ids, _ in task.calibration()) == 256
    for ids, mask in islice(task.train_batches(), 400):
        assert ids.shape == mask.shape == (16, 128)
        assert {row.numpy().astype(np.uint16).tobytes() for row in ids} <= posts["calibration"]

    first = task._head[0]
    monkeypatch.setattr(minilm_20news, "embed", None)
    assert torch.equal(MinilmNews()._head[0], first), "the head comes from the cache"


@pytest.mark.nightly
@pytest.mark.timeout(5400)
def test_a_build_meets_its_budget_and_keeps_the_score(tmp_path: Path) -> None:
    asked = {"profile": "host", "budget": "latency=60%", "recover_steps": 120}
    result = build("minilm-20news", out=tmp_path, **asked)
    assert (result.verdict.status, result.exit_code) == ("met", 0)
    assert result.verdict.scores is not None
    assert result.verdict.scores.difference > -0.03
