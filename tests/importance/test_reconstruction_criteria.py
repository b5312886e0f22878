"""Criteria that ask what the next layer can rebuild: lasso, its weighted form, PFP's, DCP's."""

from __future__ import annotations

import pytest
import torch
from models import noise
from torch import Tensor, nn

from edgeprune.importance import CRITERIA, Evidence, discriminative, rank_units
from edgeprune.importance.lasso import minimised, survivals
from edgeprune.importance.sensitivity import drawn_factors, draws_for, error_bound
from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.recover import refit
from edgeprune.sites import find_sites
from edgeprune.surgery import apply

UNITS = 8


def evidence_of(net: nn.Module, x: Tensor, labels: Tensor | None = None) -> Evidence:
    found = find_sites(capture(net.eval(), (x[:3],)))
    half = len(x) // 2
    parts = [(part,) for part in x.split(half)]
    return Evidence(found, parts, labels=None if labels is None else labels.split(half))


def hidden(inputs: int, outputs: int) -> nn.Sequential:
    """One hidden layer of ``UNITS`` rectified units."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, UNITS), nn.ReLU(), nn.Linear(UNITS, outputs))


def only_site(evidence: Evidence, units: int = UNITS) -> str:
    (name,) = (site.name for site in evidence.sites.cuttable if site.units == units)
    return name


@torch.no_grad()
def test_lasso_and_a_refit_halve_the_error_of_a_layer_without_gradients() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 6, 3), nn.Flatten()
    ).requires_grad_(False)
    x = noise(32, 2, 8, 8, seed=1)
    evidence = evidence_of(net, x)
    name = only_site(evidence, 16)
    kept = tuple(sorted(rank_units(evidence, "lasso")[name][:8]))
    plan = Plan(evidence.sites.program.fingerprint, {name: kept})
    plain = apply(evidence.sites.program, plan, evidence.sites)
    slim = refit(evidence.sites, plan, evidence.batches)
    before, after = (float((p(x) - net(x)).square().sum()) for p in (plain, slim))
    assert after < 0.5 * before


def test_the_lasso_solution_meets_its_conditions() -> None:
    parts = noise(200, 6, seed=1).double()
    moments, penalty = parts.T @ parts, 60.0
    wanted = moments.sum(1)
    found = torch.zeros(6, dtype=torch.float64)
    for _ in range(20):
        found = minimised(moments, wanted, penalty, found)
    slope = wanted - moments @ found
    inside = found.abs() > 0
    assert int(inside.sum()) > 0
    torch.testing.assert_close(slope[inside], penalty * found[inside].sign(), rtol=1e-4, atol=1e-3)
    assert (slope[~inside].abs() <= penalty * 1.001).all()


def test_lasso_lets_the_small_and_the_copied_part_go_first() -> None:
    parts = noise(300, 5, seed=2).double() * torch.tensor([3.0, 0.1, 2.0, 1.0, 1.5])
    assert survivals(parts.T @ parts).argmin() == 1


def test_a_lasso_that_minds_the_loss_keeps_what_the_loss_feels() -> None:
    class Deaf(nn.Module):
        """Its second layer's feature 0 is loud, and the classes hang on feature 1 alone."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2)
            with torch.no_grad():
                self.up.weight.copy_(torch.eye(4))
                self.up.bias.fill_(1.0)
                self.mix.weight.copy_(torch.tensor([[9.0, 8, 0, 0], [0, 0, 1, 0.8]]))
                self.mix.bias.zero_()
                self.head.weight.copy_(torch.tensor([[0.0, 1], [0, -1]]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.up(x).relu()).tanh() * 0.5)

    x = noise(40, 4, seed=3) * 0.3
    evidence = evidence_of(Deaf(), x, (x[:, 2] > 0).long())
    name = only_site(evidence, 4)
    assert set(rank_units(evidence, "lasso")[name][:2]) == {0, 1}
    assert set(rank_units(evidence, "lasso_gradient")[name][:2]) == {2, 3}


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """What each of 64 units adds to 5 outputs of 20 rows, and the units' sensitivities."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 5))
    evidence = evidence_of(net, noise(20, 6, seed=1))
    name = only_site(evidence, 64)
    reader, tensors = evidence.readers[name], evidence.sites.program.tensors
    rows = torch.cat([reader.features(x) for (x,) in evidence.values([reader.source])])
    parts = reader.parts(tensors[reader.weight], rows, 64)
    bias = tensors[reader.bias or ""]
    wanted = reader.results(torch.cat([v for (v,) in evidence.values([reader.node])]))
    torch.testing.assert_close(parts.sum(2) + bias, wanted)
    return parts.double(), CRITERIA["sensitivity"].score(evidence, evidence.sites.get(name))


def test_sensitivity_bounds_every_share(drawn: tuple[Tensor, Tensor]) -> None:
    parts, found = drawn
    shares = parts.abs() / parts.abs().sum(2, keepdim=True)
    torch.testing.assert_close(found.double(), shares.amax((0, 1)))
    assert float(found.sum()) >= 1


def test_the_error_of_drawn_units_keeps_its_bound(drawn: tuple[Tensor, Tensor]) -> None:
    parts, found = drawn
    epsilon, delta, generator = 0.5, 0.05, torch.Generator().manual_seed(0)
    outputs = parts.shape[0] * parts.shape[1]
    draws = draws_for(found, outputs, epsilon, delta)
    assert error_bound(found, outputs, draws, delta) == pytest.approx(epsilon, rel=0.02)
    whole, size = parts.sum(2), parts.abs().sum(2)
    held = 0
    for _ in range(100):
        factors = drawn_factors(found, draws, generator)
        held += bool((((parts @ factors) - whole).abs() <= epsilon * size).all())
    assert held >= 95


def test_half_the_error_takes_more_units(drawn: tuple[Tensor, Tensor]) -> None:
    _, found = drawn
    kept = []
    for epsilon in (4.0, 2.0, 1.0):
        draws = draws_for(found, 1, epsilon, 0.5)
        factors = drawn_factors(found, draws, torch.Generator().manual_seed(1))
        kept.append(int((factors > 0).sum()))
    assert kept[0] < kept[1] < kept[2]


def test_a_discriminative_choice_keeps_the_unit_that_tells_classes_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = torch.arange(60) % 2
    x = noise(60, 6, seed=4)
    x[:, 5] = labels * 0.6 - 0.3 + 0.05 * noise(60, seed=5)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(6))
        net[0].bias.fill_(2.0)
        net[2].weight.copy_(torch.ones(6, 6) * 0.3 + 2 * torch.eye(6))
    evidence = evidence_of(net, x, labels)
    name = next(s.name for s in evidence.sites.cuttable if ("0.weight", 0) in s.weights)
    assert rank_units(evidence, "discriminative")[name].index(5) <= 1
    monkeypatch.setattr(discriminative, "BALANCE", 0.0)
    assert rank_units(evidence, "discriminative")[name].index(5) >= 4


def test_regression_labels_are_no_classes_to_tell_apart() -> None:
    net, x = hidden(4, 2), noise(20, 4, seed=1)
    evidence = evidence_of(net, x, noise(20, 2, seed=2))
    site = evidence.sites.get(only_site(evidence))
    assert not CRITERIA["discriminative"].applies(evidence, site)
    assert CRITERIA["lasso_gradient"].applies(evidence, site)
