"""Scores on the test split, and how sure their difference is."""

from __future__ import annotations

import numpy as np
import pytest
from signs import Signs

from edgeprune.errors import InputError
from edgeprune.task import Predict, Score
from edgeprune.validate import Scored
from edgeprune.validate.scores import compare_scores, paired_interval, take_score


def test_the_interval_is_of_the_differences_per_example() -> None:
    scores, base = (1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0)
    interval = paired_interval(scores, base)
    assert interval is not None
    half = 1.96 * np.std([0, -1, 0, 1], ddof=1) / 2
    assert interval == pytest.approx((-half, half), abs=1e-4)
    assert paired_interval(scores, scores) == (0.0, 0.0)


def test_a_score_that_never_asks_the_model_is_refused() -> None:
    class Deaf(Signs):
        name = "Deaf"

        def evaluate(self, predict: Predict) -> Score:
            return 1.0

    with pytest.raises(InputError, match=r"Deaf: evaluate\(\) never called predict"):
        take_score(Deaf(), lambda batch: batch, "dense program")


def test_scores_without_examples_have_no_interval(task: Signs) -> None:
    scores = compare_scores(task, Scored(0.7), Scored(0.7), Scored(0.8))
    assert scores.interval is None and scores.difference == pytest.approx(-0.1)
