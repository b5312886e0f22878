"""A build's nouns become a report: with provenance, on one damage scale, without addresses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from searches import estimated_search

from edgeprune.budget import Budget
from edgeprune.candidates import Candidate, Correction, Round, SearchResult
from edgeprune.devices import DeviceState, Measurement, OperatorTime
from edgeprune.formulate import damage_of, formulate, plan_of
from edgeprune.lower import Artifact, Lowering
from edgeprune.lower.delegation import DelegationRow
from edgeprune.profile import load_profile
from edgeprune.report import Report, compose
from edgeprune.search import Search
from edgeprune.solve import Bounds, solve
from edgeprune.stages import StageTime
from edgeprune.tasks.digits_vit import DigitsVit
from edgeprune.validate import Predicted, Verdict
from edgeprune.validate.scores import Scores
from edgeprune.validate.timing import MB_PER_MIB, Timing

STATE = DeviceState("ssh:anna@phone", "Linux", "a CPU", None, (), None, (0,), 1, {})


@pytest.fixture(scope="module")
def search() -> Search:
    return estimated_search(DigitsVit(), Lowering("int8"))


@pytest.fixture(scope="module")
def found(search: Search) -> SearchResult:
    """The solver's own answer, over budget in the first round, chosen in the second."""
    args = (search.sites, search.choices, search.levels, search.damage)
    solution = solve(formulate(*args, search.table), Bounds(search.bounds.latency_ms, None, None))
    plan = plan_of(*args, solution.point)
    predicted = 1.1 * solution.latency_ms
    over = Candidate(plan, predicted, None, solution.damage, {}, solution.certificate)
    tried = ((1.0, over), (1.1, replace(over, score=0.9)))
    rounds = tuple(
        Round(Correction(c), search.bounds.latency_ms, None, (each,)) for c, each in tried
    )
    return SearchResult(solution.front, rounds)


def report_of(search: Search, found: SearchResult, timing: Timing | None) -> Report:
    verdict = Verdict(
        status="met" if timing else "not_measured",
        checks=(),
        numerics=None,
        scores=Scores("accuracy", 0.95, 0.955, 0.96, -0.01, (-0.02, 0.0), 360, 0.98),
        timing=timing,
        predicted=Predicted(1.0, 1.0, estimated=True),
        sha256="00",
    )
    rows = [DelegationRow(f"n{i}", "aten.sum", "cpu", "", "no kernel") for i in range(3)]
    rows.append(DelegationRow("n4", "aten.linear", "xnnpack", "0", ""))
    artifact = Artifact(
        *(Path("/home/anna/build/model.pte"), Lowering("int8"), (), (), tuple(rows)),
        *(1, 1000, 2_000_000, "00", 1.0),
    )
    return compose(
        search=search,
        found=found,
        verdict=verdict,
        profile=load_profile("pixel8"),
        budget=Budget.parse("latency=50%"),
        artifact=artifact,
        distilled=None,
        operators={"dense": [OperatorTime("gelu", "e", "cpu", 1.0, 2)]} if timing else {},
        stages=[StageTime("profile", 1.0)],
        command="edgeprune build",
    )


def measured(name: str, ms: float) -> Measurement:
    return Measurement(name, (ms,) * 5, 2 * ms, 5, 30.0, 10.0, 20.0, STATE)


def test_the_damage_of_a_plan_is_what_the_solver_charged(
    search: Search, found: SearchResult
) -> None:
    assert found.chosen.damage > 0
    assert damage_of(found.plan, search.choices, search.damage) == pytest.approx(
        found.chosen.damage
    )
    args = (search.sites, search.choices, search.levels, search.damage)
    for point in found.front[::20]:
        got = damage_of(plan_of(*args, point), search.choices, search.damage)
        assert got == pytest.approx(point.damage)


def test_front_and_candidates_carry_the_last_correction(
    search: Search, found: SearchResult
) -> None:
    points = report_of(search, found, None).front.points
    (chosen,) = (point for point in points if point.chosen)
    nearest = min(abs(p.latency_ms - chosen.latency_ms) for p in points if not p.candidate)
    assert chosen.candidate and chosen.score == 0.9 and nearest == pytest.approx(0.0)


def test_without_a_device_costs_are_estimated_and_only_they(
    search: Search, found: SearchResult
) -> None:
    report = report_of(search, found, None)
    assert report.target.estimated and report.bounds.estimated and report.state is None
    for model in (report.dense, report.pruned):
        assert model.p50_ms and model.p50_ms.estimated
        assert model.peak_memory_mb and model.peak_memory_mb.estimated
        assert model.min_ms is None and model.score and not model.score.estimated
    assert report.pruned.size_mb and report.pruned.size_mb.value == 2.0
    assert not report.pruned.size_mb.estimated


def test_measured_numbers_say_on_what_in_megabytes_and_points(
    search: Search, found: SearchResult
) -> None:
    report = report_of(search, found, Timing(measured("pruned", 3.0), measured("dense", 6.0)))
    pruned = report.pruned
    assert pruned.p50_ms and (pruned.p50_ms.value, pruned.p50_ms.provenance) == (
        *(3.0, "measured on ssh"),
    )
    assert pruned.peak_memory_mb and pruned.peak_memory_mb.value == 10.0 * MB_PER_MIB
    assert report.comparison and report.comparison.interval_points == (-2.0, 0.0)
    assert report.operators.dense[0].delegated is False
    assert [(why.op, why.count) for why in report.delegation.why_not] == [("aten.sum", 3)]


def test_no_path_and_no_address_gets_into_a_report(search: Search, found: SearchResult) -> None:
    report = report_of(search, found, Timing(measured("pruned", 3.0), measured("dense", 6.0)))
    text = json.dumps(report.to_json())
    assert "anna" not in text and "/home" not in text
    assert report.reproduce.file == "model.pte"


def test_layers_show_what_the_plan_keeps(search: Search, found: SearchResult) -> None:
    layers = report_of(search, found, None).layers
    assert len(layers) == len(search.choices)
    for layer, choice in zip(layers, search.choices, strict=True):
        assert layer.removed == (choice.residual.name in found.plan.kept)
        if choice.site and choice.site.name in found.plan.kept:
            assert layer.kept == found.plan.kept[choice.site.name]
