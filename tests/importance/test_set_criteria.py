"""Criteria that look at units together, at their maps, at points, or through other criteria."""

from __future__ import annotations

import itertools

import pytest
import torch
from models import inputs, noise, sites
from torch import Tensor, nn

from edgeprune.importance import CRITERIA, Evidence, pairwise, rank_units
from edgeprune.importance.coordinate import coordinate_correlation, enhanced
from edgeprune.importance.feature_correlation import parting_order
from edgeprune.importance.meta import TOY, learn, ranked
from edgeprune.importance.output_damage import output_damage
from edgeprune.importance.pairwise import best_subset, gauss_newton
from edgeprune.importance.snip import connection_sensitivity
from edgeprune.program import capture
from edgeprune.sites import Site, find_sites

UNITS, KEEP = 12, 6


@pytest.fixture(scope="module")
def linear_behind() -> Evidence:
    """Units whose gates move the outputs by an exact quadratic form, some of them in pairs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, UNITS), nn.ReLU(), nn.Linear(UNITS, 4))
    with torch.no_grad():
        for one, two in ((0, 1), (2, 3), (4, 5)):  # the second takes back what the first gives
            net[0].weight[two] = net[0].weight[one]
            net[0].bias[two] = net[0].bias[one]
            net[2].weight[:, one] *= 4
            net[2].weight[:, two] = -0.9 * net[2].weight[:, one]
    found = find_sites(capture(net.eval(), (noise(3, 6, seed=0),)))
    return Evidence(found, [(noise(60, 6, seed=1),)])


def test_gauss_newton_is_the_movement_of_masked_sets(linear_behind: Evidence) -> None:
    (site,) = linear_behind.sites.cuttable
    pairs = gauss_newton(linear_behind, site)
    for gone in ((0,), (0, 1), (2, 7, 9)):
        factors = torch.ones(UNITS)
        factors[list(gone)] = 0
        moved = linear_behind.movement({linear_behind.gated.paths[site.name]: factors})
        removed = 1.0 - factors.double()
        assert float(removed @ pairs @ removed) == pytest.approx(moved, rel=0.5, abs=1e-3)


@pytest.mark.parametrize(("most", "excess"), [(pairwise.MOST_SUBSETS, 1e-6), (0, 0.1)])
def test_the_set_that_may_go_is_the_best_of_all_or_nearly(
    linear_behind: Evidence, most: int, excess: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairwise, "MOST_SUBSETS", most)
    (site,) = linear_behind.sites.cuttable
    path = linear_behind.gated.paths[site.name]

    def moved(kept: tuple[int, ...]) -> float:
        return linear_behind.movement({path: mask(kept)})

    exact = second_moments(linear_behind)
    best = min(
        itertools.combinations(range(UNITS), KEEP),
        key=lambda kept: float((1 - mask(kept).double()) @ exact @ (1 - mask(kept).double())),
    )
    alone = tuple(sorted(exact.diagonal().argsort(descending=True)[:KEEP].tolist()))
    chosen = best_subset(exact, KEEP)
    assert moved(chosen) <= (1 + excess) * moved(best)
    assert moved(alone) > 1.5 * moved(best)


def mask(kept: tuple[int, ...]) -> Tensor:
    factors = torch.zeros(UNITS)
    factors[list(kept)] = 1
    return factors


def second_moments(evidence: Evidence) -> Tensor:
    """The exact quadratic form of the movement."""
    (site,) = evidence.sites.cuttable
    reader = evidence.readers[site.name]
    (x,) = next(iter(evidence.values([reader.source])))
    weight = evidence.sites.program.tensors[reader.weight]
    parts = reader.parts(weight, reader.features(x), UNITS).flatten(0, 1).double()
    return parts.T @ parts / evidence.spread[0]


def test_pairwise_keeps_units_that_cancel_out_of_the_front_row(linear_behind: Evidence) -> None:
    ((_, order),) = rank_units(linear_behind, "pairwise").items()
    ((_, alone),) = rank_units(linear_behind, "output_damage").items()
    assert set(alone[:6]) == set(range(6))
    assert {order.index(one) - order.index(two) for one, two in ((0, 1), (2, 3), (4, 5))} <= {-1, 1}
    assert set(order[:6]) != set(range(6))


def test_snip_shares_out_the_whole_sensitivity_and_gives_dead_units_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight[5] = 0
        net[0].bias[5] = -1
    x, labels = noise(30, 6, seed=1), torch.arange(30) % 3
    evidence = Evidence(find_sites(capture(net, (x[:3],))), [(x,)], labels=[labels])
    (site,) = evidence.sites.cuttable
    scores = CRITERIA["snip"].score(evidence, site)
    assert scores.argmin() == 5 and float(scores[5]) == 0.0
    loss = nn.functional.cross_entropy(net(x), labels)
    loss.backward()
    rows = [(p.detach() * p.grad).abs().double() for p in net.parameters() if p.grad is not None]
    total = sum(float(each.sum()) for each in rows)
    wanted = (rows[0].sum(1) + rows[1] + rows[2].sum(0)) / total
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-8)
    assert sum(float(e.sum()) for e in connection_sensitivity(evidence).values()) == pytest.approx(
        1
    )


def test_of_copied_maps_one_stays_and_flat_maps_go_first() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.Flatten())
    with torch.no_grad():
        net[0].bias.fill_(1.0)
        net[0].weight[4:6] = 0.5 * net[0].weight[:2]
        net[0].weight[7] = 0
    x = noise(20, 1, 8, 8, seed=1)
    evidence = Evidence(find_sites(capture(net, (x[:3],))), [(x,)])
    (order,) = (o for o in rank_units(evidence, "feature_correlation").values() if len(o) == 8)
    assert order[-1] == 7
    assert {4, 5} == set(order[-3:-1])


def test_the_flatter_of_two_alike_maps_goes() -> None:
    likeness = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]).double()
    assert parting_order(likeness, torch.tensor([2.0, 1.0, 0.5]))[0] == 1
    assert parting_order(likeness, torch.tensor([1.0, 2.0, 0.5]))[0] == 0


class Points(nn.Module):
    """A PointNet in miniature: one layer for every point, then the mean."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = last
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 5)
        with torch.no_grad():
            self.up.weight.mul_(3.0)
            self.up.weight[6] = torch.tensor([0.01, 0.0, 0.0])
            self.up.bias[6] = 1.0

    def forward(self, cloud: Tensor) -> Tensor:
        points = cloud if self.last else cloud.transpose(1, 2)
        return self.down((self.up(points).square()).sigmoid()).mean(1)


@pytest.mark.parametrize("last", [True, False])
def test_the_channel_that_is_a_coordinate_is_never_cut_first(last: bool) -> None:
    x = noise(20, 30, 3, seed=1)
    x = x if last else x.transpose(1, 2).contiguous()
    evidence = Evidence(find_sites(capture(Points(last), (x[:3],))), [(x,)])
    (site,) = (s for s in evidence.sites.cuttable if s.units == 8)
    assert CRITERIA["coordinate"].applies(evidence, site)
    found = coordinate_correlation(evidence, site)
    assert found.argmax() == 6
    assert float(found[6]) > 0.95

    def unfair(evidence: Evidence, site: Site) -> Tensor:
        return torch.tensor([9.0, 1, 2, 1, 2, 1, 0, 1])

    assert unfair(evidence, site).argmin() == 6
    assert enhanced(unfair)(evidence, site).argmin() != 6


def test_coordinates_are_asked_of_point_clouds_alone() -> None:
    evidence = Evidence(sites("convolutional"), [inputs("convolutional", 4, 1)])
    for site in evidence.sites.cuttable:
        assert site.kind != "width" or not CRITERIA["coordinate"].applies(evidence, site)


def test_a_scorer_learns_on_one_network_what_damage_means_on_another() -> None:
    taught = [Evidence(sites(name), [inputs(name, 8, 1)]) for name in ("fused",)]
    scorer = learn(taught)
    new = Evidence(sites("grouped"), [inputs("grouped", 8, 1)])
    for judge in (scorer, TOY):
        agreement = [
            float((ranked(judge(new, site)) * ranked(output_damage(new, site))).mean())
            for site in new.sites.cuttable
            if site.kind == "width" and 8 <= site.units <= 64
        ]
        # A third is equal orders, nought is a random one.
        assert agreement and sum(agreement) / len(agreement) > 0.15
