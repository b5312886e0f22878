"""Criteria on trained networks, as `tools/bench_criteria.py` compares them with a random choice."""

from __future__ import annotations

from collections.abc import Callable

import bench_criteria
import numpy as np
import pytest
from _digits_cnn import accuracy, narrower, train, trained, untrained

from edgeprune.importance import CRITERIA
from edgeprune.plan import Plan
from edgeprune.surgery import apply

SEEDS = 5

# 27 criteria, five networks: four minutes, more beside other tests.
pytestmark = pytest.mark.timeout(1500)

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
    assert mean("taylor_fo", "masked") >= 0.7
    assert mean("taylor_fo", "layer over random") >= 1


@pytest.mark.nightly
def test_bn_scale_beats_random_by_three_points_where_one_layer_is_cut(mean: Mean) -> None:
    assert mean("bn_scale", "layer over random") >= 3


@pytest.mark.nightly
def test_a_network_cut_in_half_by_snip_before_training_learns_as_much() -> None:
    lost = []
    for seed in range(SEEDS):
        evidence = bench_criteria.of_digits(untrained(seed))
        kept = {
            site.name: bench_criteria.best(CRITERIA["snip"], evidence, site, site.units // 2)
            for site in bench_criteria.widths(evidence, "channels")
        }
        program = evidence.sites.program
        half = narrower(apply(program, Plan(program.fingerprint, kept), evidence.sites))
        lost.append(accuracy(trained(seed)) - accuracy(train(half, seed)))
    assert np.mean(lost) <= 0.01
