"""The algebra of cutting and refitting the columns of a reading matrix."""

from __future__ import annotations

import pytest
import torch
from models import HEADS, WIDTH, inputs, noise, sites
from torch import Tensor, nn

from edgeprune.importance import Evidence
from edgeprune.importance.obs import removal_errors, removal_order
from edgeprune.importance.readers import augmented, gram_of, reader_of, refitted, regularised
from edgeprune.program import capture
from edgeprune.sites import find_sites

ROWS, INPUTS, OUTPUTS = 300, 12, 5


@pytest.fixture
def features() -> Tensor:
    """Correlated inputs with a mean, [rows, in]."""
    return noise(ROWS, INPUTS, seed=1) @ noise(INPUTS, INPUTS, seed=2) + noise(INPUTS, seed=3)


def residual(x: Tensor, wanted: Tensor) -> float:
    """Squared error of the best linear map from x."""
    x, wanted = x.double(), wanted.double()
    return float((x @ torch.linalg.lstsq(x, wanted).solution - wanted).square().sum())


@pytest.mark.parametrize("has_bias", [True, False])
def test_refitted_weights_are_the_least_squares_solution(features: Tensor, has_bias: bool) -> None:
    weight = noise(OUTPUTS, INPUTS, seed=4)
    bias = noise(OUTPUTS, seed=5) if has_bias else None
    columns = torch.tensor([0, 2, 3, 7, 8])
    found = refitted(augmented(weight, bias), gram_of(features), columns, has_bias)
    x = features[:, columns]
    if has_bias:
        x = torch.cat([x, torch.ones(ROWS, 1)], dim=1)
    wanted = features @ weight.T + (0.0 if bias is None else bias)
    best = torch.linalg.lstsq(x.double(), wanted.double()).solution.T
    assert found.shape == (OUTPUTS, len(columns) + has_bias)
    torch.testing.assert_close(found, best, rtol=2e-2, atol=2e-3)
    error = float((x.double() @ found.T - wanted).square().sum())
    assert error <= 1.0001 * residual(x, wanted)


def test_directions_without_data_keep_their_weights() -> None:
    x = noise(ROWS, INPUTS, seed=1)
    x[:, 3] = 0
    weight = noise(OUTPUTS, INPUTS, seed=4)
    columns = torch.arange(1, INPUTS)
    found = refitted(augmented(weight, None), gram_of(x), columns, constant=False)
    torch.testing.assert_close(found[:, 2].float(), weight[:, 3])


def test_units_that_never_fire_are_ranked_and_refitted() -> None:
    gram = gram_of(torch.zeros(ROWS, INPUTS))
    weight = augmented(noise(OUTPUTS, INPUTS, seed=4), None)
    every = torch.arange(INPUTS)
    assert sorted(removal_order(weight, regularised(gram), every[:, None]).tolist()) == [*every]
    found = refitted(weight, gram, every[1:], constant=False)
    torch.testing.assert_close(found, weight[:, 1:-1])


def test_removal_errors_are_least_squares_residuals(features: Tensor) -> None:
    weight = noise(OUTPUTS, INPUTS, seed=4).double()
    columns = torch.arange(INPUTS).reshape(4, 3)
    x = features.double()
    errors = removal_errors(weight, torch.linalg.inv(x.T @ x), columns)
    for unit, gone in enumerate(columns):
        stay = [i for i in range(INPUTS) if i not in gone]
        assert float(errors[unit]) == pytest.approx(residual(x[:, stay], x @ weight.T), rel=1e-6)


def test_removal_order_is_greedy_with_a_refit_after_every_step(features: Tensor) -> None:
    weight = noise(OUTPUTS, INPUTS, seed=4).double()
    x, columns = features.double(), torch.arange(INPUTS).reshape(6, 2)
    wanted = x @ weight.T

    def error_without(gone: list[int]) -> float:
        stay = [u for u in range(len(columns)) if u not in gone]
        return residual(x[:, columns[stay].flatten()], wanted)

    gone: list[int] = []
    while len(gone) < len(columns) - 1:
        left = [unit for unit in range(len(columns)) if unit not in gone]
        gone.append(min(left, key=lambda unit: error_without([*gone, unit])))
    gone += [unit for unit in range(len(columns)) if unit not in gone]
    assert removal_order(weight, x.T @ x, columns).tolist() == gone


def test_a_combination_of_other_units_goes_first(features: Tensor) -> None:
    features[:, 5] = features[:, 1] + 2 * features[:, 9]
    x = features.double()
    gram = x.T @ x + 1e-6 * torch.eye(INPUTS)
    weight = noise(OUTPUTS, INPUTS, seed=4).double()
    assert int(removal_order(weight, gram, torch.arange(INPUTS)[:, None])[0]) in (1, 5, 9)


def test_columns_of_a_head_are_its_whole_width() -> None:
    reader = reader_of(sites("bert"), "bert.encoder.layer.0.heads")
    size = WIDTH // HEADS
    assert reader is not None
    assert reader.weight == "bert.encoder.layer.0.attention.output.dense.weight"
    assert reader.columns((0, 2)).tolist() == [*range(size), *range(2 * size, 3 * size)]


def test_columns_of_no_unit_always_stay() -> None:
    found = find_sites(capture(SideBySide(), (noise(3, 6, seed=0),)))
    reader = reader_of(found, next(site.name for site in found.cuttable if site.units == 4))
    assert reader is not None
    assert reader.columns((1,)).tolist() == [1, *range(4, 10)]


def test_a_site_with_two_readers_has_no_reader_of() -> None:
    found = find_sites(capture(TwoReaders(), (noise(3, 6, seed=0),)))
    (site,) = found.cuttable
    assert reader_of(found, site.name) is None


def test_a_matrix_used_twice_is_no_reader_of() -> None:
    found = find_sites(capture(SharedReader(), (noise(3, 6, seed=0),)))
    assert found.cuttable
    assert all(reader_of(found, site.name) is None for site in found.cuttable)


def test_second_moments_are_summed_over_all_batches() -> None:
    batches = [inputs("fused", 3, seed) for seed in (1, 2)]
    evidence = Evidence(sites("fused"), batches)
    (first,), (second,) = batches
    whole = Evidence(sites("fused"), [(torch.cat([first, second]),)])
    for name, gram in evidence.grams.items():
        torch.testing.assert_close(gram, whole.grams[name], rtol=1e-5, atol=1e-4)
        assert float(gram[-1, -1]) == 6 * 12


class SideBySide(nn.Module):
    """A matrix that reads units of two others side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 6)
        self.reader = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(torch.cat([self.first(x).relu(), self.second(x).relu()], dim=-1))


class TwoReaders(nn.Module):
    """Units that two matrices read."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        units = self.up(x).relu()
        return self.one(units) * self.two(units)


class SharedReader(nn.Module):
    """One matrix that reads the units of two."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 8)
        self.reader = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.one(x).relu()) * self.reader(self.two(x).sigmoid())
