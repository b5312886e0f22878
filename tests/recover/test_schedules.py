"""Every schedule ends at the plan that was asked for, each by its own way."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from models import TOKENS, inputs, noise, sites

from edgeprune.errors import InputError
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.recover import SCHEDULES, distilling, run_schedule
from edgeprune.recover.refit import put_back
from edgeprune.recover.schedules.tick_tock import TICKS
from edgeprune.sites import Sites
from edgeprune.surgery import apply
from edgeprune.task import Batch

ROUNDS = 2
TURNS = {"one_shot": 1, "iterative": ROUNDS, "tick_tock": ROUNDS, "revive": ROUNDS}
CUTS = TURNS | {"tick_tock": ROUNDS * TICKS, "rewind": ROUNDS}


class Recording:
    """Training that remembers what it was given and gave, and, if asked, shakes the weights."""

    def __init__(self, shake: float = 0.0) -> None:
        self.given: list[Program] = []
        self.gave: list[Program] = []
        self._shake = shake

    def __call__(self, program: Program) -> Program:
        trained = dataclasses.replace(program, module=copy.deepcopy(program.module))
        with torch.no_grad():
            for i, tensor in enumerate(trained.tensors.values()):
                if isinstance(tensor, torch.nn.Parameter):
                    tensor += self._shake * noise(*tensor.shape, seed=i + len(self.given))
        self.given.append(program)
        self.gave.append(trained)
        return trained


def third(found: Sites, *axes: str) -> Plan:
    """A plan that keeps every third unit of all sites of these axes."""
    kept = {s.name: tuple(range(0, s.units, 3)) for s in found.cuttable if s.axis in axes}
    return Plan(found.program.fingerprint, kept)


def batches_of(name: str) -> list[Batch]:
    return [inputs(name, 12, seed) for seed in (1, 2)]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_program_has_exactly_as_many_units_as_asked(schedule: str) -> None:
    found, train = sites("convolutional"), Recording(0.02)
    target = third(found, "channels")
    done = run_schedule(
        found, target, batches_of("convolutional"), train, schedule=schedule, rounds=ROUNDS
    )
    counts = {name: len(units) for name, units in target.kept.items()}
    assert {name: len(units) for name, units in done.plan.kept.items()} == counts
    cut = apply(found.program, done.plan, found)
    shapes = {path: tensor.shape for path, tensor in cut.tensors.items()}
    assert {path: tensor.shape for path, tensor in done.program.tensors.items()} == shapes
    done.program(*inputs("convolutional", 5, 3))
    assert len(train.given) == TURNS.get(schedule, ROUNDS + 1)
    assert len(done.rounds) == CUTS[schedule]


def test_a_rank_is_refused_before_anything_is_cut() -> None:
    found, train = sites("bert"), Recording()
    target = Plan(found.program.fingerprint, rank={"bert.embeddings.word_embeddings.rank": 2})
    with pytest.raises(InputError, match="ranks or fall-backs"):
        run_schedule(found, target, batches_of("bert"), train)
    assert not train.given


def test_one_shot_keeps_the_very_units_of_the_plan() -> None:
    found = sites("fused")
    target = third(found, "heads", "ffn")
    done = run_schedule(found, target, batches_of("fused"), Recording())
    assert done.plan == target


def test_iterative_takes_units_only_from_those_that_are_left() -> None:
    found = sites("fused")
    target = third(found, "heads", "ffn")
    done = run_schedule(
        found, target, batches_of("fused"), Recording(0.02), schedule="iterative", rounds=4
    )
    for before, after in itertools.pairwise(done.rounds):
        assert not after.revived
        for name in target.kept:
            assert set(after.kept[name]) <= set(before.kept[name])
    neurons = next(name for name in target.kept if name.endswith("neurons"))
    assert [len(each.kept[neurons]) for each in done.rounds] == [34, 27, 21, 14]


def test_iterative_keeps_what_training_has_made_of_the_weights() -> None:
    found, train = sites("fused"), Recording(0.5)
    neurons = next(s.name for s in found.cuttable if s.axis == "ffn")
    target = Plan(found.program.fingerprint, {neurons: tuple(range(10))})
    done = run_schedule(found, target, batches_of("fused"), train, schedule="iterative", rounds=2)
    left = [done.rounds[0].kept[neurons].index(unit) for unit in done.rounds[1].kept[neurons]]
    path = "layers.0.up.bias"
    assert torch.equal(train.given[1].tensors[path], train.gave[0].tensors[path][left])


def test_rewind_trains_from_the_kept_original_weights_every_time() -> None:
    found = sites("fused")
    target = third(found, "heads", "ffn")
    train = Recording(0.5)
    done = run_schedule(found, target, batches_of("fused"), train, schedule="rewind", rounds=2)
    for start, each in zip(train.given[1:], done.rounds, strict=True):
        original = apply(found.program, Plan(target.program, each.kept), found)
        for path, tensor in original.tensors.items():
            assert torch.equal(start.tensors[path], tensor)


def test_the_log_of_revive_shows_units_that_came_back() -> None:
    found = sites("convolutional")
    done = run_schedule(
        found,
        third(found, "channels"),
        batches_of("convolutional"),
        Recording(0.3),
        schedule="revive",
        rounds=6,
    )
    back = [
        (name, unit) for r in done.rounds for name, units in r.revived.items() for unit in units
    ]
    assert back
    for before, after in itertools.pairwise(done.rounds):
        for name, units in after.revived.items():
            assert set(units) <= set(after.kept[name]) - set(before.kept[name])


def test_put_back_is_the_inverse_of_a_cut() -> None:
    found = sites("convolutional")
    plan = third(found, "channels")
    slim = apply(found.program, plan, found)
    assert put_back(found, plan, slim).fingerprint == found.program.fingerprint
    with torch.no_grad():
        for tensor in slim.tensors.values():
            tensor += 1
    whole = put_back(found, plan, slim)
    again = apply(whole, Plan(whole.fingerprint, plan.kept))
    for path, tensor in slim.tensors.items():
        assert torch.equal(again.tensors[path], tensor)


def test_sub_layers_and_tokens_go_as_the_plan_says() -> None:
    found, train = sites("bert"), Recording()
    ffn = "bert.encoder.layer.1.ffn"
    heads = third(found, "heads").kept
    target = Plan(
        found.program.fingerprint, heads | {ffn: ()}, {"bert.encoder.layer.0.tokens": TOKENS // 2}
    )
    done = run_schedule(found, target, batches_of("bert"), train, schedule="iterative", rounds=2)
    assert done.plan.tokens == target.tokens
    assert done.plan.kept[ffn] == ()
    assert all(not any("layer.1.intermediate" in p for p in g.tensors) for g in train.given)
    wanted = apply(found.program, done.plan, found)
    assert done.program.parameters == wanted.parameters
    nodes = [
        sum(n.op == "call_function" for n in p.module.graph.nodes) for p in (done.program, wanted)
    ]
    assert nodes[0] == nodes[1]


def test_turns_of_distillation_bring_the_outputs_nearer() -> None:
    found, batches = sites("fused"), batches_of("fused")

    def stream() -> Iterator[Batch]:
        return (inputs("fused", 16, seed) for seed in itertools.count(10))

    def distance(program: Program) -> float:
        with torch.no_grad():
            return sum(float((program(*b) - found.program(*b)).square().sum()) for b in batches)

    target = third(found, "ffn")
    train = distilling(found.program, stream, steps=40, seed=0)
    untrained, trained = (
        run_schedule(found, target, batches, each, schedule="iterative", rounds=2).program
        for each in (Recording(), train)
    )
    assert distance(trained) < distance(untrained)


def test_unknown_schedules_and_no_rounds_are_refused() -> None:
    found = sites("fused")
    target = third(found, "ffn")
    with pytest.raises(InputError, match=r"'cyclic': unknown; .*iterative.*tick_tock"):
        run_schedule(found, target, [], Recording(), schedule="cyclic")
    with pytest.raises(InputError, match="0 rounds"):
        run_schedule(found, target, [], Recording(), rounds=0)
