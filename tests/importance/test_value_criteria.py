"""Criteria by weights and by what units compute: each is what its paper defines."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from models import inputs, noise, sites
from planted import HEAD_SITE, NEURON_SITE, planted, rows_of, silence_head
from small import about, convolutions
from torch import Tensor, nn

from edgeprune.importance import CRITERIA, Evidence, rank_units
from edgeprune.importance.hsic import centred, gaussian_kernels
from edgeprune.importance.residual_norm import branch_norms
from edgeprune.importance.shapley import shapley_values
from edgeprune.program import capture
from edgeprune.sites import find_sites


def test_l2_is_the_root_mean_square_of_all_weights_that_leave() -> None:
    evidence, site = about(convolutions(), 3, 2, 6, 6)
    tensors = evidence.sites.program.tensors
    own = [tensors[f"{name}"].detach() for name in ("first.weight", "first.bias", "norm.weight")]
    own += [tensors["norm.bias"].detach(), tensors["second.weight"].detach().transpose(0, 1)]
    every = torch.cat([each.reshape(site.units, -1) for each in own], dim=1).double()
    wanted = every.square().mean(1).sqrt()
    torch.testing.assert_close(CRITERIA["l2"].score(evidence, site), wanted)


def test_bn_scale_is_the_size_of_the_scale_and_needs_a_batch_norm() -> None:
    network = convolutions()
    with torch.no_grad():
        network.norm.weight[5] = -3.0
        network.norm.weight[6] = 0.0
    evidence, site = about(network, 3, 2, 6, 6)
    scores = CRITERIA["bn_scale"].score(evidence, site)
    torch.testing.assert_close(scores.float(), network.norm.weight.detach().abs())
    assert (int(scores.argmax()), int(scores.argmin())) == (5, 6)
    fused = Evidence(sites("fused"), [])
    applies = CRITERIA["bn_scale"].applies
    assert not any(applies(fused, fused.sites.get(name)) for name in (HEAD_SITE, NEURON_SITE))


def test_activation_is_the_mean_size_of_what_the_readers_read() -> None:
    network = convolutions()
    evidence, site = about(network, 3, 2, 6, 6)
    values = [
        network.norm(network.first(x)).relu().abs().mean((0, 2, 3)) for (x,) in evidence.batches
    ]
    wanted = torch.stack(values).mean(0).detach()
    torch.testing.assert_close(CRITERIA["activation"].score(evidence, site), wanted)


class Maps(nn.Module):
    """One convolution with biases of all sizes, so that some channels are dead over most pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        nn.init.uniform_(self.first.bias, -1.2, 0.2)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


def test_ranks_of_maps_from_other_images_agree() -> None:
    network = Maps().eval()
    batches = [(noise(12, 1, 16, 16, seed=seed),) for seed in (1, 2)]
    found = find_sites(capture(network, batches[0]))
    site = next(each for each in found.cuttable if each.units == 16)
    scores = [CRITERIA["feature_rank"].score(Evidence(found, [batch]), site) for batch in batches]
    assert float(torch.corrcoef(torch.stack(scores))[0, 1]) >= 0.95
    assert len(scores[0].unique()) > 8  # not saturated
    maps = network.first(batches[0][0]).relu()
    torch.testing.assert_close(scores[0], torch.linalg.matrix_rank(maps).float().mean(0))


def test_a_unit_that_is_no_matrix_has_no_rank() -> None:
    evidence = Evidence(sites("fused"), [inputs("fused", 3, 1)])
    applies = CRITERIA["feature_rank"].applies
    assert applies(evidence, evidence.sites.get(HEAD_SITE))
    assert not applies(evidence, evidence.sites.get(NEURON_SITE))


def test_hsic_of_values_that_decide_the_outputs_is_above_that_of_noise() -> None:
    x, other = noise(64, 3, seed=1).double(), noise(64, 3, seed=2).double()
    outputs = centred(x @ x.T)

    def dependence(features: Tensor) -> float:
        return float((centred(gaussian_kernels(features)) * outputs).sum())

    assert dependence(x) > 3 * dependence(other)
    assert dependence(torch.ones(64, 3).double()) == pytest.approx(0.0, abs=1e-9)


def test_hsic_lets_the_head_that_says_nothing_go_first() -> None:
    def mute(block: nn.Module) -> None:
        for tensor in (*block.qkv.weight.chunk(3)[2:], *block.qkv.bias.chunk(3)[2:]):
            tensor[rows_of(2)] = 0

    assert rank_units(planted(mute, examples=24), "hsic")[HEAD_SITE][-1] == 2


class Branches(nn.Module):
    """Six residual branches, each louder than the one before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward = nn.Linear(6, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(6))
        self.ups = nn.ModuleList(nn.Linear(16, 24) for _ in range(6))
        self.downs = nn.ModuleList(nn.Linear(24, 16) for _ in range(6))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        loud = 0.2
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(up(norm(x)).relu()) * loud
            loud *= 1.6
        return self.head(x)


def test_norms_of_branches_rank_what_removing_them_does() -> None:
    batches = [(noise(40, 6, seed=1),)]
    evidence = Evidence(find_sites(capture(Branches().eval(), batches[0])), batches)
    branches = [site for site in evidence.sites.cuttable if site.axis == "sublayer"]
    assert len(branches) == 6
    score = CRITERIA["residual_norm"].score
    norms = torch.cat([score(evidence, site) for site in branches]).double()
    damage = torch.tensor(
        [evidence.movement({evidence.gated.paths[site.name]: torch.zeros(1)}) for site in branches]
    )
    ranks = torch.stack([each.argsort().argsort().double() for each in (norms, damage)])
    assert torch.corrcoef(ranks)[0, 1] >= 0.6


def test_a_units_share_of_its_branch_is_what_it_adds_to_it() -> None:
    evidence = planted(lambda block: silence_head(block, 2))
    scores = CRITERIA["residual_norm"].score(evidence, evidence.sites.get(HEAD_SITE))
    whole = evidence.once(branch_norms)["layers.0.attention"]
    assert scores.argmin() == 2
    assert scores[2] == 0
    assert whole / 3 < float(scores.square().sum().sqrt()) < 3 * whole
    assert not CRITERIA["residual_norm"].applies(*about(convolutions(), 3, 2, 6, 6))


def test_shapley_values_of_an_additive_game_are_its_terms() -> None:
    terms = torch.tensor([5.0, -1.0, 0.5, 3.0, 0.0, 2.0]).double()
    generator = torch.Generator().manual_seed(0)
    found = shapley_values(lambda there: float(there.double() @ terms), 6, generator, 20, 1e-3)
    assert float((found - terms).abs().max()) <= 0.05 * float(terms.abs().max())


def test_shapley_values_come_near_the_exact_ones_where_players_overlap() -> None:
    def worth(there: Tensor) -> float:
        a, b, c, d = there.tolist()
        return 4 * max(a, b) + 2 * c * d + c

    exact = torch.zeros(4).double()
    for order in itertools.permutations(range(4)):
        there, before = torch.zeros(4), 0.0
        for player in order:
            there[player] = 1
            exact[player] += (worth(there) - before) / math.factorial(4)
            before = worth(there)
    found = shapley_values(worth, 4, torch.Generator().manual_seed(0), 2000, 0.0)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)


def test_truncation_spares_most_of_the_work() -> None:
    asked = []

    def worth(there: Tensor) -> float:
        asked.append(1)
        return float(there.any())

    shapley_values(worth, 50, torch.Generator().manual_seed(0), 10, 0.01)
    assert len(asked) <= 2 + 10  # the first to come is worth all


def test_shapley_lets_a_head_that_disturbs_the_task_go_first() -> None:
    labels = [outputs[0].argmax(-1) for outputs in planted(lambda block: None).outputs]

    def disturb(block: nn.Module) -> None:
        block.proj.weight[:, rows_of(2)] += 4 * noise(32, 8, seed=5)

    loud = planted(disturb)
    evidence = Evidence(loud.sites, loud.batches, labels=labels)
    scores = CRITERIA["shapley"].score(evidence, evidence.sites.get(HEAD_SITE))
    assert scores.argmin() == 2
    assert scores[2] < 0
