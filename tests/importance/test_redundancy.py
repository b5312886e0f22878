"""Criteria that look for units which others can stand for."""

from __future__ import annotations

import pytest
import torch
from models import noise
from small import CHANNELS, about, convolutions, double_half

from edgeprune.importance import CRITERIA, rank_units
from edgeprune.importance.correlation import correlations
from edgeprune.importance.units import matrices, unit_values


@pytest.mark.parametrize("name", ["fpgm", "correlation"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_doubled_channels_nearly_every_original_stays(name: str, seed: int) -> None:
    network = convolutions(seed)
    pairs = double_half(network, seed)
    evidence, site = about(network, 16, 2, 8, 8)
    kept = rank_units(evidence, name)[site.name][: CHANNELS // 2]
    assert sum(one in kept or two in kept for one, two in pairs) >= 0.95 * len(pairs)


def test_scores_of_units_one_by_one_lose_originals() -> None:
    network = convolutions()
    pairs = double_half(network, 0)
    evidence, site = about(network, 16, 2, 8, 8)
    kept = rank_units(evidence, "l1")[site.name][: CHANNELS // 2]
    assert sum(one in kept or two in kept for one, two in pairs) < 0.95 * len(pairs)


def test_fpgm_lets_filters_like_the_mean_go_that_l1_keeps() -> None:
    network, planted = convolutions(), range(0, CHANNELS, 4)
    with torch.no_grad():
        network.first.weight += 1.0
        network.first.bias.zero_()
        network.norm.weight.fill_(1.0)
        network.norm.bias.zero_()
        mean = network.first.weight.mean(0)
        network.first.weight[planted] = mean + 1e-3 * noise(*mean.shape, seed=1)
    evidence, site = about(network, 4, 2, 8, 8)
    left = rank_units(evidence, "fpgm")[site.name][-len(planted) :]
    assert len(set(left) & set(planted)) >= 0.85 * len(planted)  # of equal ones the last defends
    left = rank_units(evidence, "l1")[site.name][-len(planted) :]
    assert len(set(left) & set(planted)) <= 0.5 * len(planted)


def test_correlations_are_pearsons() -> None:
    evidence, site = about(convolutions(), 6, 2, 8, 8)
    rows = [values.transpose(0, 1).flatten(1) for (values,) in unit_values(evidence, site)]
    wanted = torch.corrcoef(torch.cat(rows, dim=1).double())
    torch.testing.assert_close(correlations(evidence, site), wanted)


def test_a_unit_that_never_speaks_correlates_with_none() -> None:
    network = convolutions()
    with torch.no_grad():
        network.norm.weight[3] = network.norm.bias[3] = 0.0
    evidence, site = about(network, 6, 2, 8, 8)
    found = correlations(evidence, site)
    assert found.isfinite().all()
    assert found[3].abs().max() < 1e-6


def test_next_layer_recon_errs_a_third_less_than_random_with_three_quarters_out() -> None:
    network = convolutions()
    evidence, site = about(network, 16, 2, 8, 8)
    (matrix,) = matrices(evidence, site)
    moments = matrix.moments(site.units)

    def error(name: str, seed: int = 0) -> float:
        evidence.seed = seed
        gone = CRITERIA[name].score(evidence, site).argsort()[: 3 * CHANNELS // 4]
        return float(moments[gone][:, gone].sum() / moments.sum())

    others = [error("random", seed) for seed in range(5)]
    assert error("next_layer_recon") <= 0.7 * sum(others) / len(others)
