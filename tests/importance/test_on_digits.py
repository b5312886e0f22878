"""Criteria on trained networks, as `tools/bench_criteria.py` compares them with a random choice."""

from __future__ import annotations

from collections.abc import Callable

import bench_criteria
import numpy as np
import pytest
from _digits_cnn import trained

from edgeprune.importance import CRITERIA

SEEDS = 5

Mean = Callable[[str, str], float]


@pytest.fixture(scope="module")
def mean() -> Mean:
    """The mean over the seeds, by criterion and check."""
    found: bench_criteria.Found = {name: {} for name in CRITERIA}
    for seed in range(SEEDS):
        network = trained(seed)
        bench_criteria.oracle(found, network, seed)
        bench_criteria.one_layer(found, network, seed)
    return lambda name, check: float(np.mean(found[name][check]))


@pytest.mark.nightly
def test_taylor_fo_ranks_all_channels_as_masking_them_does(mean: Mean) -> None:
    assert mean("taylor_fo", "outputs") >= 0.7
    assert mean("taylor_fo", "layer over random") >= 1


@pytest.mark.nightly
def test_bn_scale_beats_random_by_three_points_where_one_layer_is_cut(mean: Mean) -> None:
    assert mean("bn_scale", "layer over random") >= 3
