"""The final scores, on the test split, each model read once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from edgeprune import console
from edgeprune.errors import InputError
from edgeprune.task import Batch, Predict, Recorded, Task, blaming, cosines

Z95 = 1.959964


@dataclass(frozen=True)
class Scored:
    """One model on the test split.

    Attributes:
        per_example: the numbers whose mean ``score`` is, if the task gives them.
        answers: the first output for all examples, ``[examples, ...]``.
    """

    score: float
    per_example: tuple[float, ...] | None = field(default=None, repr=False)
    answers: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Scores:
    """The file, the program it was lowered from, and the dense program, on the test split.

    Attributes:
        difference: the file's score minus the dense program's.
        interval: of ``difference``, 95%: the mean of the differences per example, plus and minus
            1.96 of its standard errors (paired, normal); None if the task gives no such numbers.
        examples: how many the interval rests on.
        cosine: mean cosine of the file's first output to the dense program's.
    """

    name: str
    file: float
    recovered: float
    dense: float
    difference: float
    interval: tuple[float, float] | None
    examples: int | None
    cosine: float | None


def take_score(task: Task, predict: Predict, what: str) -> Scored:
    """Read the whole test split once.

    Args:
        what: which model this is, for the progress bar.

    Raises:
        InputError: the task's score is not a finite number.
    """
    recorded = Recorded(predict)
    with console.progress(f"scoring {what}", None, "examples") as advance, torch.no_grad():

        def counted(inputs: Batch) -> Tensor | Batch:
            outputs = recorded(inputs)
            advance(len(inputs[0]))
            return outputs

        with blaming(task, "evaluate"):
            score = task.evaluate(counted)
    if not recorded.asked:
        raise InputError(
            f"task {task.name}: evaluate() never called predict, so its score says nothing about "
            "the model"
        )
    numbers = np.asarray(score, dtype=float)
    if not numbers.size or not np.isfinite(numbers).all():
        raise InputError(
            f"task {task.name}: evaluate() of the {what} gave {score!r}, wanted finite numbers"
        )
    each = tuple(numbers.tolist()) if numbers.ndim == 1 else None
    return Scored(float(numbers.mean()), each, recorded.answers)


def compare_scores(task: Task, file: Scored, recovered: Scored, dense: Scored) -> Scores:
    """The three scores with the paired interval of file minus dense."""
    interval = None
    if file.per_example is not None and dense.per_example is not None:
        interval = paired_interval(file.per_example, dense.per_example)
    return Scores(
        name=task.score_name,
        file=file.score,
        recovered=recovered.score,
        dense=dense.score,
        difference=file.score - dense.score,
        interval=interval,
        examples=None if interval is None else len(file.per_example or ()),
        cosine=_mean_cosine(file.answers, dense.answers),
    )


def paired_interval(
    scores: tuple[float, ...], reference: tuple[float, ...]
) -> tuple[float, float] | None:
    """The 95% normal interval of the mean difference per example; None below two examples."""
    if len(scores) != len(reference) or len(scores) < 2:
        return None
    differences = np.asarray(scores) - np.asarray(reference)
    half = Z95 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    middle = float(differences.mean())
    return middle - half, middle + half


def _mean_cosine(answers: Tensor | None, dense: Tensor | None) -> float | None:
    if answers is None or dense is None or answers.shape != dense.shape:
        return None
    if answers[0].numel() == 1:  # the cosine of single numbers is only their sign
        return None
    return float(cosines(answers, dense).mean())
