"""The closed loop from a budget to one plan."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import inputs, model, program
from searches import estimated_search
from torch import nn

import edgeprune.search
from edgeprune.budget import AbsoluteBudget
from edgeprune.candidates import Candidate, SearchResult
from edgeprune.devices import DeviceState, Measurement, Workload
from edgeprune.errors import InfeasibleError, InputError
from edgeprune.formulate import choices_of, formulate
from edgeprune.importance import Evidence
from edgeprune.lower import Lowering
from edgeprune.plan import Plan, check_plan
from edgeprune.profile import Multiples
from edgeprune.program.program import as_tuple
from edgeprune.recover import distil, refit
from edgeprune.search import AIM, Search
from edgeprune.sites import Sites
from edgeprune.solve import Problem
from edgeprune.task import Batch, Predict, Score, Task
from edgeprune.trial import Trial
from edgeprune.validate.timing import MB_PER_MIB

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("search")

STATE = DeviceState("made up", "none", "none", None, (), None, (0,), 1, {})


class Unscored(Task):
    """A small BERT without labels."""

    def model(self) -> nn.Module:
        return model("bert")

    def example_inputs(self) -> Batch:
        return inputs("bert")

    def calibration(self) -> Iterable[Batch]:
        return [inputs("bert", 16, 1)]

    def evaluate(self, predict: Predict) -> Score:
        return 0.0


class Scored(Unscored):
    """The same, with a validation score: how well the mean output's sign is kept."""

    def validate(self, predict: Predict) -> float | None:
        (batch,) = self.calibration()
        answers = predict(batch)
        assert isinstance(answers, torch.Tensor)
        return float(((answers > 0) == (program("bert")(*batch) > 0)).float().mean())


class Trained(Unscored):
    """The same, with something to distil on."""

    def train_batches(self) -> Iterator[Batch]:
        return (inputs("bert", 8, seed) for seed in itertools.count(2))


class ScriptedDevice:
    """Every file takes as long as the script says: once around the loop is one entry."""

    name = "scripted"

    def __init__(self, *script_ms: float) -> None:
        self.script_ms = script_ms
        self.dense_ms: float | None = None
        self.slow: dict[str, float] = {}
        self.memory_mib: list[float] = []
        self.asked: list[list[str]] = []

    def measure_in_turns(
        self, workloads: Sequence[Workload], rounds: int = 50, memory: bool = False
    ) -> dict[str, Measurement]:
        assert all(each.path.stat().st_size > 1000 for each in workloads[1:])
        took = self.script_ms[len(self.asked)]
        heavy = self.memory_mib.pop(0) if memory else None
        self.asked.append([each.name for each in workloads])
        times = {each.name: self.slow.get(each.name, took) for each in workloads}
        times["dense"] = self.dense_ms or took
        return {
            name: Measurement(name, (ms,) * 3, 1.0, 5, 1.0, heavy, 0.01, STATE)
            for name, ms in times.items()
        }


@pytest.fixture(scope="module")
def search() -> Search:
    return estimated_search(Unscored(), Lowering())


def every(result: SearchResult) -> list[Candidate]:
    """All candidates of all rounds."""
    return [candidate for each in result.rounds for candidate in each.candidates]


def bound_of(search: Search) -> float:
    assert search.bounds.latency_ms is not None
    return search.bounds.latency_ms


def with_device(search: Search, folder: Path, *ratios: float) -> tuple[Search, ScriptedDevice]:
    """The search on a device that takes these ratios of the bound, one a round."""
    device = ScriptedDevice(*(ratio * bound_of(search) for ratio in ratios))
    dense = folder / "dense.pte"
    return replace(search, device=device, dense=dense, folder=folder), device  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, Lowering], bytes]:
    return {}


@pytest.fixture(autouse=True)
def _each_plan_is_lowered_once(
    made: dict[tuple[str, Lowering], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds, and most tests begin with the same plan."""
    lowered = edgeprune.search._lowered

    def once(sites: Sites, lowering: Lowering, plan: Plan) -> bytes:
        key = (plan.hash, lowering)
        if key not in made:
            made[key] = lowered(sites, lowering, plan)
        return made[key]

    monkeypatch.setattr("edgeprune.search._lowered", once)


@pytest.fixture
def one_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one takes seconds to lower."""
    monkeypatch.setattr("edgeprune.search._around", lambda weights, axes: [dict(weights)])


def test_without_a_device_the_prediction_meets_the_budget(search: Search) -> None:
    result = search.run()
    only = result.rounds[0]
    check_plan(result.plan, search.sites)
    predicted = search.table.predict(search.sites, result.plan).latency_ms
    assert result.chosen.predicted_ms == pytest.approx(predicted)
    assert predicted <= AIM * bound_of(search)
    assert result.chosen.measured_ms is None and only.dense_ms is None
    assert only.correction.latency == 1.0
    assert len({candidate.plan.hash for candidate in only.candidates}) == len(only.candidates) > 1


def test_without_labels_the_candidate_that_moves_the_outputs_least_wins(search: Search) -> None:
    result = search.run()
    scores = [candidate.score for candidate in every(result)]
    assert all(score is not None and score < 0 for score in scores)
    assert result.chosen.score == max(score for score in scores if score is not None)
    program = refit(search.sites, result.plan, search.calibration)
    evidence = Evidence(search.sites, search.calibration)
    with torch.no_grad():
        moved = evidence.moved(as_tuple(program(*batch)) for batch in evidence.batches)
    assert result.chosen.score == pytest.approx(-moved, rel=1e-5)


def test_the_tasks_validation_score_decides_where_it_has_one(search: Search) -> None:
    result = replace(search, task=Scored()).run()
    scores = [candidate.score for candidate in every(result)]
    assert all(score is not None and 0 < score < 1 for score in scores)
    assert result.chosen.score == max(score for score in scores if score is not None)


def test_candidates_go_on_in_a_direction_that_scores_better(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mapping[str, float]] = []

    def noted(*arguments: Any) -> Problem:
        asked.append(arguments[-1])
        return formulate(*arguments)

    monkeypatch.setattr("edgeprune.search.formulate", noted)
    monkeypatch.setattr(Trial, "_score", lambda self, program: (-float(program.parameters), None))
    result = search.run()
    assert result.chosen.score == max(c.score for c in every(result) if c.score is not None)
    assert result.chosen.weights == {"depth": 0.5}
    assert {} in asked and {"depth": 0.25} in asked
    assert {"length": 0.25} not in asked


def test_only_axes_with_a_choice_in_them_are_weighed(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mapping[str, float]] = []

    def noted(*arguments: Any) -> Problem:
        asked.append(arguments[-1])
        return formulate(*arguments)

    monkeypatch.setattr("edgeprune.search.formulate", noted)
    for axes, weighed in ((("width",), set()), (("depth", "width"), {"depth"})):
        asked.clear()
        replace(search, choices=choices_of(search.sites, Multiples(1, 8, 1), axes)).run()
        assert {axis for weights in asked for axis in weights} == weighed


def test_candidates_are_scored_after_a_trial_distillation(search: Search) -> None:
    result = replace(search, task=Trained(), trial_steps=3).run()
    program = refit(search.sites, result.plan, search.calibration)
    dense, batches = search.sites.program, Trained().train_batches()
    trained = distil(program, dense, batches, steps=3, seed=0).program
    evidence = Evidence(search.sites, search.calibration)
    with torch.no_grad():
        moved, without = (
            evidence.moved(as_tuple(each(*batch)) for batch in evidence.batches)
            for each in (trained, program)
        )
    assert result.chosen.score == pytest.approx(-moved, rel=1e-4)
    assert result.chosen.score != pytest.approx(-without, rel=1e-3)


def test_a_budget_out_of_reach_is_refused(search: Search) -> None:
    tight = replace(search.bounds, latency_ms=bound_of(search) / 1000)
    with pytest.raises(InfeasibleError, match="latency"):
        replace(search, bounds=tight).run()


@pytest.mark.usefixtures("one_candidate")
def test_over_budget_the_table_is_corrected_and_solved_again(
    search: Search, tmp_path: Path
) -> None:
    closed, device = with_device(search, tmp_path, 1.2, 0.95)
    first, second = closed.run().rounds
    (over,) = first.candidates
    assert first.correction.latency == 1.0
    assert second.correction.latency == pytest.approx(1.2 * bound_of(search) / over.predicted_ms)
    assert second.correction.latency > 1.2
    for candidate in second.candidates:
        by_table = search.table.predict(search.sites, candidate.plan).latency_ms
        assert candidate.predicted_ms == pytest.approx(second.correction.latency * by_table)
        assert candidate.predicted_ms <= AIM * bound_of(search)
    assert all(c.score is None for c in first.candidates)
    assert all(c.score is not None for c in second.candidates)
    assert [names[0] for names in device.asked] == ["dense", "dense"]
    assert second.dense_ms == pytest.approx(0.95 * bound_of(search))


@pytest.mark.nightly
@pytest.mark.usefixtures("one_candidate")
def test_a_table_that_is_far_too_high_is_corrected_too(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.PASSES", 0)
    closed, _ = with_device(search, tmp_path, 0.6, 0.95)
    first, second = closed.run().rounds
    (low,), (better,) = first.candidates, second.candidates
    assert second.correction.latency == pytest.approx(0.6 * bound_of(search) / low.predicted_ms)
    assert better.damage < low.damage and better.score is not None


@pytest.mark.nightly
@pytest.mark.usefixtures("one_candidate")
def test_a_finished_file_over_budget_is_solved_for_again(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.PASSES", 0)
    closed, device = with_device(search, tmp_path, 0.95, 0.95)
    bound = bound_of(search)
    found = closed.run()
    finished = replace(found.chosen, measured_ms=1.1 * bound)
    other = closed.again(found, finished, bound)
    assert other.plan != found.plan and other.chosen.score is not None
    last = other.rounds[-1].correction.latency
    assert last == pytest.approx(1.1 * bound / found.chosen.predicted_ms)
    assert all(c.score is None for each in other.rounds[:-1] for c in each.candidates)
    assert len(device.asked) == 2
    assert [(turn.plans, turn.over_budget) for turn in other.turns] == [(2, 2), (1, 0)]
    assert SearchResult.from_json(json.loads(json.dumps(other.to_json()))).plan == other.plan


@pytest.mark.nightly
@pytest.mark.usefixtures("one_candidate")
def test_never_more_than_three_corrections_are_tried(search: Search, tmp_path: Path) -> None:
    closed, device = with_device(search, tmp_path, 1.1, 1.1, 1.1, 1.1)
    found = closed.run()
    assert len(device.asked) == len(found.turns) == 3
    assert all(turn.plans == turn.over_budget for turn in found.turns)


@pytest.mark.nightly
def test_a_plan_over_budget_is_solved_again_although_others_fit(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.PASSES", 0)
    plain = search.run().rounds[0].candidates[0]
    closed, device = with_device(search, tmp_path, 0.95, 0.95)
    device.slow = {plain.plan.hash: 1.05 * bound_of(search)}
    first, second = closed.run().rounds
    assert [c.score is None for c in first.candidates] == [
        c.plan == plain.plan for c in first.candidates
    ]
    (again,) = second.candidates
    assert again.weights == plain.weights == {}
    assert again.plan != plain.plan and again.score is not None
    assert second.correction.latency == pytest.approx(1.05 * bound_of(search) / plain.predicted_ms)


@pytest.mark.nightly
@pytest.mark.usefixtures("one_candidate")
def test_memory_over_budget_is_corrected_too(search: Search, tmp_path: Path) -> None:
    dense = search.table.predict(search.sites, Plan(search.sites.program.fingerprint))
    asked = 0.998 * dense.peak_memory_mb  # most of it are embeddings
    bounds = AbsoluteBudget(None, asked * MB_PER_MIB, None, None, 50)
    closed, device = with_device(search, tmp_path, 0.9, 0.9)
    device.memory_mib = [1.002 * asked, 0.95 * asked]
    first, second = replace(closed, bounds=bounds).run().rounds
    (over,), (within,) = first.candidates, second.candidates
    assert over.score is None and over.peak_memory_mb == pytest.approx(1.002 * asked * MB_PER_MIB)
    assert within.score is not None
    said = search.table.predict(search.sites, over.plan).peak_memory_mb
    assert second.correction.memory == pytest.approx(1.002 * asked / said)
    assert second.correction.latency == 1.0
    again = search.table.predict(search.sites, within.plan).peak_memory_mb
    assert again * second.correction.memory <= asked


def test_a_correction_that_asks_too_much_leaves_the_plans_that_fit(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.PASSES", 0)
    plain = search.run().rounds[0].candidates[0]
    closed, device = with_device(search, tmp_path, 0.95)
    device.slow = {plain.plan.hash: 100 * bound_of(search)}
    (only,) = closed.run().rounds
    assert [c.score is None for c in only.candidates].count(True) == 1


def test_an_unreachable_bound_is_said_in_the_users_numbers(search: Search) -> None:
    least = replace(search.bounds, latency_ms=None, size_mb=0.01)
    with pytest.raises(InfeasibleError, match=r"size asked ≤ 0\.01 MB.*[Ee]stimate"):
        replace(search, bounds=least).run()


def test_a_validation_score_that_is_no_number_is_refused(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unscored, "validate", lambda self, predict: float("nan"))
    with pytest.raises(InputError, match=r"validate\(\) gave nan"):
        search.run()


@pytest.mark.usefixtures("one_candidate")
def test_a_share_is_judged_by_the_dense_model_beside_it(search: Search, tmp_path: Path) -> None:
    closed, device = with_device(search, tmp_path, 1.1, 0.9)
    shared = replace(closed, bounds=replace(search.bounds, latency_share=0.5))
    device.dense_ms = 2.3 * bound_of(search)  # a slow moment: 1.1 is still less than half
    (only,) = shared.run().rounds
    assert only.bound_ms == pytest.approx(1.15 * bound_of(search))
    device.asked.clear()
    device.dense_ms = 2.0 * bound_of(search)
    over, corrected = shared.run().rounds
    (candidate,) = over.candidates
    uncut = Plan(search.sites.program.fingerprint)
    whole = search.table.predict(search.sites, uncut).latency_ms
    # 1.1 of 2 was measured: how much must be predicted, for the bound's 1 of 2 less the margin?
    saved = (1 - AIM / 2) * (1 - candidate.predicted_ms / whole) / (1 - 1.1 / 2)
    assert corrected.correction.latency == pytest.approx(
        AIM * bound_of(search) / ((1 - saved) * whole)
    )


@pytest.mark.nightly
@pytest.mark.usefixtures("one_candidate")
def test_where_cuts_save_less_than_predicted_one_correction_meets_the_budget(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.PASSES", 0)
    uncut = Plan(search.sites.program.fingerprint)
    whole = search.table.predict(search.sites, uncut).latency_ms
    bound = 0.7 * whole
    wide = replace(search, bounds=replace(search.bounds, latency_ms=bound))

    def took(plan: Plan) -> float:
        """Two thirds of what the table says is saved."""
        return whole - 2 / 3 * (whole - wide.table.predict(wide.sites, plan).latency_ms)

    (plain,) = wide.run().rounds[0].candidates
    closed, device = with_device(wide, tmp_path, took(plain.plan) / bound, 0.95)
    device.dense_ms = whole
    over, corrected = closed.run().rounds
    assert all(c.score is None for c in over.candidates)
    (again,) = corrected.candidates
    assert 0.94 * bound <= took(again.plan) <= AIM * bound
    assert again.predicted_ms <= AIM * bound


@pytest.mark.nightly
@pytest.mark.usefixtures("one_candidate")
def test_a_table_off_by_two_fifths_is_corrected_until_plans_are_within_budget(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.PASSES", 0)
    true = search.table
    wrong = replace(true, scale=0.6 * true.scale, fixed_ms=0.6 * true.fixed_ms)
    whole = true.predict(search.sites, Plan(search.sites.program.fingerprint)).latency_ms
    bound = 0.55 * whole
    tight = replace(search, table=wrong, bounds=replace(search.bounds, latency_ms=bound))
    (plain,) = tight.run().rounds[0].candidates
    took = true.predict(search.sites, plain.plan).latency_ms
    closed, device = with_device(tight, tmp_path, took / bound, 0.95)
    device.dense_ms = whole
    first, second = closed.run().rounds
    assert first.correction.latency == 1.0 and all(c.score is None for c in first.candidates)
    assert second.correction.latency == pytest.approx(1 / 0.6, rel=0.01)
    (again,) = second.candidates
    assert true.predict(search.sites, again.plan).latency_ms <= bound
    assert again.score is not None


@pytest.mark.usefixtures("one_candidate")
def test_a_plan_that_never_fits_is_reported_after_the_last_round(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.ROUNDS", 1)
    closed, _ = with_device(search, tmp_path, 1.05)
    result = closed.run()
    assert len(result.rounds) == 1
    assert result.chosen.measured_ms == pytest.approx(1.05 * bound_of(search))
    assert result.chosen.score is None
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_result_survives_json(search: Search) -> None:
    result = search.run()
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result
