"""Every criterion finds the unit that it should call useless."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import TOKENS, FusedBlock, inputs, noise, sites
from planted import (
    HEAD_SITE,
    NEURON_SITE,
    blur_head,
    copy_head,
    copy_neuron,
    empty_head,
    empty_neuron,
    planted,
    silence_head,
    silence_neuron,
)
from torch import nn

from edgeprune.errors import InputError
from edgeprune.importance import CRITERIA, DEFAULT, Evidence, measure_damage, rank_units, shapley
from edgeprune.importance.criterion import criterion
from edgeprune.program import capture
from edgeprune.sites import Site, find_sites

HEAD, NEURON = 2, 7


@pytest.fixture(scope="module")
def silenced() -> Evidence:
    def plant(block: FusedBlock) -> None:
        silence_head(block, HEAD)
        silence_neuron(block, NEURON)

    return planted(plant)


@pytest.fixture(scope="module")
def bert() -> Evidence:
    return Evidence(sites("bert"), [inputs("bert", 6, seed) for seed in (1, 2)])


@pytest.mark.parametrize("name", ["taylor_fo", "output_damage"])
def test_a_unit_that_nothing_reads_goes_first(silenced: Evidence, name: str) -> None:
    orders = rank_units(silenced, name)
    assert orders[HEAD_SITE][-1] == HEAD
    assert orders[NEURON_SITE][-1] == NEURON


def test_output_damage_of_a_unit_without_effect_is_nothing(silenced: Evidence) -> None:
    scores = CRITERIA["output_damage"].score(silenced, silenced.sites.get(HEAD_SITE))
    others = torch.arange(len(scores)) != HEAD
    assert scores[HEAD] < 1e-10
    assert (scores[others] > 1e-4).all()


def test_l1_lets_the_unit_without_weights_go_first() -> None:
    def plant(block: FusedBlock) -> None:
        empty_head(block, HEAD)
        empty_neuron(block, NEURON)

    orders = rank_units(planted(plant), "l1")
    assert orders[HEAD_SITE][-1] == HEAD
    assert orders[NEURON_SITE][-1] == NEURON


def test_l1_is_the_mean_weight_of_all_matrices_that_the_unit_leaves(silenced: Evidence) -> None:
    scores = CRITERIA["l1"].score(silenced, silenced.sites.get(NEURON_SITE))
    tensors = silenced.sites.program.tensors
    up, bias, down = (tensors[f"layers.0.{n}"] for n in ("up.weight", "up.bias", "down.weight"))
    every = torch.cat([up, bias[:, None], down.T], dim=1).detach().double()
    torch.testing.assert_close(scores, every.abs().mean(1))


def test_obs_lets_one_of_two_equal_units_go_first_at_no_damage() -> None:
    def plant(block: FusedBlock) -> None:
        copy_head(block, 0, HEAD)
        copy_neuron(block, 4, NEURON)

    evidence = planted(plant)
    orders = rank_units(evidence, "obs")
    assert orders[HEAD_SITE][-1] in (0, HEAD)
    assert orders[NEURON_SITE][-1] in (4, NEURON)
    levels = {HEAD_SITE: [3, 2], NEURON_SITE: [39, 20]}
    damage = measure_damage(evidence, orders, levels, [])
    for site, (one_less, fewer) in levels.items():
        assert damage.of_width(site, one_less) < 1e-6
        assert damage.of_width(site, fewer) > 1e-5


def test_attn_confidence_lets_the_head_that_looks_everywhere_go_first() -> None:
    evidence = planted(lambda block: blur_head(block, HEAD))
    scores = CRITERIA["attn_confidence"].score(evidence, evidence.sites.get(HEAD_SITE))
    assert scores.argmin() == HEAD
    assert scores[HEAD] == pytest.approx(1 / TOKENS, rel=1e-5)


def test_attn_confidence_does_not_ask_padding(bert: Evidence) -> None:
    site = next(site for site in bert.sites.cuttable if site.axis == "heads")
    real = [mask.bool() for _, mask in bert.batches]
    others = [
        (ids.where(keep, (ids + 1) % 50), mask)
        for (ids, mask), keep in zip(bert.batches, real, strict=True)
    ]
    score = CRITERIA["attn_confidence"].score
    torch.testing.assert_close(score(bert, site), score(Evidence(bert.sites, others), site))


def test_attn_confidence_of_a_kv_group_is_that_of_its_heads() -> None:
    evidence = Evidence(sites("llama"), [inputs("llama", 4, 1)])
    score = CRITERIA["attn_confidence"].score
    by_group, by_query = (
        score(evidence, evidence.sites.get(f"llama.layers.0.{axis}"))
        for axis in ("kv_groups", "queries_per_group")
    )
    assert by_group.shape == by_query.shape == (2,)
    assert not torch.equal(by_group, by_query)
    torch.testing.assert_close(by_group.mean(), by_query.mean())


def test_random_depends_on_the_seed_and_the_site_alone(bert: Evidence) -> None:
    orders = [rank_units(Evidence(bert.sites, [], seed), "random") for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    neurons = [orders[0][name] for name in orders[0] if name.endswith("neurons")]
    assert neurons[0] != neurons[1]


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("model", ["bert", "llama", "convolutional", "densely_connected"])
def test_every_criterion_orders_all_units_of_every_width_site(
    model: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapley, "SETS", 8)
    labels = [torch.arange(4) % 3]
    evidence = Evidence(sites(model), [inputs(model, 4, 1)], labels=labels)
    orders = rank_units(evidence, name)
    widths = [site for site in evidence.sites.cuttable if site.kind == "width"]
    assert list(orders) == [site.name for site in widths]
    for site in widths:
        assert sorted(orders[site.name]) == list(range(site.units))


def test_where_a_criterion_does_not_apply_the_default_ranks(bert: Evidence) -> None:
    confident, default = rank_units(bert, "attn_confidence"), rank_units(bert, DEFAULT)
    for name in default:
        if name.endswith("neurons"):
            assert confident[name] == default[name]
    assert not CRITERIA["output_damage"].applies(bert, replace(bert.sites.cuttable[0], units=1000))


def test_where_not_even_the_default_applies_the_gradients_rank() -> None:
    evidence = Evidence(sites("convolutional"), [inputs("convolutional", 4, 1)])
    default, gradients = rank_units(evidence, DEFAULT), rank_units(evidence, "taylor_fo")
    assert {n for n in default if n not in evidence.readers} == {"channels"}
    assert default["channels"] == gradients["channels"]
    assert default != gradients


def test_an_unknown_criterion_is_refused_with_the_known_ones(bert: Evidence) -> None:
    with pytest.raises(InputError, match="'magnitude': unknown; .*attn_confidence.*taylor_fo"):
        rank_units(bert, "magnitude")


def test_a_criterion_registers_itself(bert: Evidence, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: CRITERIA.pop("first_best", None))

    @criterion("first_best", needs="weights", across_layers=False)
    def first_best(evidence: Evidence, site: Site) -> torch.Tensor:
        return -torch.arange(site.units)

    orders = rank_units(bert, "first_best")
    assert all(order == tuple(range(len(order))) for order in orders.values())


def test_the_documentation_lists_every_criterion_as_registered() -> None:
    page = Path(__file__, "../../../docs/importance.md").resolve().read_text().splitlines()
    for name, each in CRITERIA.items():
        across = "yes" if each.across_layers else "no"
        row = f"| `{name}` | {each.summary} | {each.needs} | {across} | {each.where} |"
        assert row in page


def test_the_documented_example_is_a_criterion(
    bert: Evidence, request: pytest.FixtureRequest
) -> None:
    page = Path(__file__, "../../../docs/importance.md").resolve().read_text()
    request.addfinalizer(lambda: CRITERIA.pop("loudest", None))
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    site = next(site for site in bert.sites.cuttable if site.axis == "heads")
    assert sorted(rank_units(bert, "loudest")[site.name]) == list(range(site.units))


@pytest.mark.parametrize("bias", [True, False])
def test_obs_knows_that_only_a_bias_can_take_over_a_constant_unit(bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias))
    with torch.no_grad():
        module[0].weight[5] = 0
        module[0].bias[5] = 2
        module[2].weight[:, 5] = 3
    found = find_sites(capture(module, (noise(3, 6, seed=0),)))
    (order,) = rank_units(Evidence(found, [(noise(200, 6, seed=1),)]), "obs").values()
    assert order[-1 if bias else 0] == 5
