"""Measured damage is what really cutting a site does to the outputs."""

from __future__ import annotations

import json

import pytest
import torch
from models import inputs, sites

from edgeprune.importance import Damage, Evidence, measure_damage, rank_units
from edgeprune.plan import Plan
from edgeprune.program.program import as_tuple
from edgeprune.recover import refit
from edgeprune.surgery import apply

MODELS = ("bert", "llama", "convolutional")
KEPT_TOKENS = (8, 5)


@pytest.fixture(scope="module", params=MODELS)
def evidence(request: pytest.FixtureRequest) -> Evidence:
    return Evidence(sites(request.param), [inputs(request.param, 24, seed) for seed in (1, 2)])


@pytest.fixture(scope="module")
def damage(evidence: Evidence) -> Damage:
    orders = rank_units(evidence, "l1")
    levels = {name: sorted({1, len(order) // 2}) for name, order in orders.items()}
    return measure_damage(evidence, orders, levels, [12, *KEPT_TOKENS])


def moved_by(evidence: Evidence, plan: Plan, refitted: bool = True) -> float:
    """Output movement of the program that is really cut."""
    program = (
        refit(evidence.sites, plan, evidence.batches)
        if refitted
        else apply(evidence.sites.program, plan, evidence.sites)
    )
    with torch.no_grad():
        return evidence.moved(as_tuple(program(*batch)) for batch in evidence.batches)


def test_width_damage_is_that_of_the_cut_and_refitted_program(
    evidence: Evidence, damage: Damage
) -> None:
    for name, levels in damage.width.items():
        for kept, measured in levels.items():
            plan = Plan(evidence.sites.program.fingerprint, {name: damage.best(name, kept)})
            assert measured == pytest.approx(moved_by(evidence, plan), rel=1e-4, abs=1e-9)


def test_depth_damage_is_that_of_the_program_without_the_sub_layer(
    evidence: Evidence, damage: Damage
) -> None:
    assert list(damage.removed) == [residual.name for residual in evidence.sites.residuals]
    for name, measured in damage.removed.items():
        plan = Plan(evidence.sites.program.fingerprint, {name: ()})
        assert measured == pytest.approx(moved_by(evidence, plan), rel=1e-4)


def test_length_damage_is_that_of_the_program_with_fewer_tokens(
    evidence: Evidence, damage: Damage
) -> None:
    assert list(damage.tokens) == [stream.name for stream in evidence.sites.streams]
    for name in damage.tokens:
        for keep in KEPT_TOKENS:
            plan = Plan(evidence.sites.program.fingerprint, tokens={name: keep})
            wanted = moved_by(evidence, plan, refitted=False)
            assert damage.of_tokens(name, keep) == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_a_whole_site_does_no_damage(evidence: Evidence, damage: Damage) -> None:
    for name in damage.width:
        assert damage.of_width(name, evidence.sites.get(name).units) == 0.0
        assert damage.of_width(name, 1) > 0.0
    for name in damage.tokens:
        assert damage.of_tokens(name, evidence.sites.get(name).units) == 0.0


def test_damage_survives_json(damage: Damage) -> None:
    assert Damage.from_json(json.loads(json.dumps(damage.to_json()))) == damage


@pytest.mark.parametrize("model", ["bert", "convolutional"])
def test_refitting_the_reader_lowers_the_damage(model: str) -> None:
    dense = Evidence(sites(model), [inputs(model, 24, seed) for seed in (1, 2)])
    orders = {name: o for name, o in rank_units(dense, "l1").items() if name in dense.readers}
    assert orders
    damage = measure_damage(dense, orders, {name: [len(o) // 2] for name, o in orders.items()}, [])
    for name, order in orders.items():
        kept = len(order) // 2
        plan = Plan(dense.sites.program.fingerprint, {name: damage.best(name, kept)})
        assert damage.of_width(name, kept) < moved_by(dense, plan, refitted=False)


def test_between_measured_levels_damage_is_interpolated() -> None:
    made_up = Damage(
        orders={"heads": (2, 0, 3, 1)},
        width={"heads": {4: 0.0, 1: 0.9}},
        removed={},
        tokens={"tokens": {10: 0.0, 6: 0.2, 4: 1.0}},
    )
    assert [made_up.of_width("heads", kept) for kept in (1, 2, 3, 4)] == pytest.approx(
        [0.9, 0.6, 0.3, 0.0]
    )
    assert [made_up.of_tokens("tokens", kept) for kept in (8, 5)] == pytest.approx([0.1, 0.6])


def test_the_best_units_come_in_ascending_order() -> None:
    made_up = Damage({"heads": (2, 0, 3, 1)}, {}, {}, {})
    assert made_up.best("heads", 1) == (2,)
    assert made_up.best("heads", 3) == (0, 2, 3)
