"""Latency against the dense file in the same measurement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeprune.budget import Budget
from edgeprune.errors import EdgepruneError
from edgeprune.validate import Timing

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("validate")


def test_a_relative_budget_is_of_the_dense_file_measured_in_turns(timing: Timing) -> None:
    bounds = timing.resolve(Budget.parse("latency.p90=60%,memory=50%,size=2MB"))
    assert bounds.latency_ms == pytest.approx(0.6 * timing.dense.p90_ms)
    assert bounds.peak_memory_mb == pytest.approx(
        0.5 * (timing.dense.peak_memory_mb or 0) * 2**20 / 1e6
    )
    assert (bounds.size_mb, bounds.percentile) == (2.0, 90)


def test_a_memory_budget_needs_memory_measured(timing: Timing) -> None:
    hasty = replace(timing, dense=replace(timing.dense, peak_memory_mb=None))
    assert hasty.resolve(Budget.parse("latency=60%")).peak_memory_mb is None
    with pytest.raises(EdgepruneError, match="memory=True"):
        hasty.resolve(Budget.parse("latency=60%,memory=50%"))


def test_a_saving_within_the_noise_is_no_saving(timing: Timing) -> None:
    samples = tuple(np.random.default_rng(0).normal(10, 1, 50))
    base = replace(timing.dense, samples_ms=samples)
    same = Timing(replace(base, samples_ms=samples[::-1]), base)
    assert same.saved_at_least_ms < 0
    faster = Timing(replace(base, samples_ms=tuple(s - 2 for s in samples[::-1])), base)
    assert 0 < faster.saved_at_least_ms < faster.saved_ms
