"""The nine stages on real parts: a small vision transformer, this machine, a measured verdict."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from edgeprune.build import STAGES, BuildResult, build
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.tasks.digits_vit import DigitsVit

# The first of them builds; measuring the cost table takes minutes on two cores.
pytestmark = pytest.mark.timeout(1500)

FILES = (
    *("model.pte", "manifest.json", "delegation.csv", "plan.json", "sites.json", "table.json"),
    *("measurement.json", "verdict.json", "report.json", "report.html", "slim.pt2"),
    "resolved.toml",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("digits")
    asked = {"profile": "host", "budget": "latency=70%", "out": out}
    return asked | {"recover_steps": 60}


@pytest.fixture(scope="module")
def built(digits: DigitsVit, settings: dict[str, Any]) -> BuildResult:
    return build(digits, **settings)


def test_every_promised_file_is_there(built: BuildResult) -> None:
    assert [name for name in FILES if not (built.out / name).is_file()] == []


def test_the_lowered_file_computes_what_the_recovered_program_computes(built: BuildResult) -> None:
    assert built.verdict.check("numerics").passed
    assert built.verdict.check("score_kept").passed
    assert built.verdict.timing is not None and built.verdict.scores is not None


def test_every_candidate_was_measured_on_the_device(built: BuildResult) -> None:
    candidates = [c for each in built.search.rounds for c in each.candidates]
    assert candidates and all(c.measured_ms for c in candidates)


def test_the_plan_cuts_something_and_its_file_says_what(built: BuildResult) -> None:
    plan = Plan.read(built.out / "plan.json")
    assert plan == built.search.plan and (plan.kept or plan.tokens)
    slim = Program.load(built.out / "slim.pt2")
    dense = json.loads((built.out / "report.json").read_text())
    assert slim.parameters < 115_000 or plan.tokens
    assert len(dense["layers"]) == 8


def test_the_same_build_again_resumes_and_gives_the_same_file(
    built: BuildResult, digits: DigitsVit, settings: dict[str, Any]
) -> None:
    again = build(digits, **settings)
    assert again.artifact.sha256 == built.artifact.sha256
    assert again.search.plan == built.search.plan
    report = json.loads((built.out / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == list(STAGES)
    assert {s["name"] for s in report["stages"] if s["resumed"]} >= {"score", "solve", "recover"}


def test_nothing_of_the_user_is_in_what_is_shipped_or_shown(built: BuildResult) -> None:
    for name in ("manifest.json", "report.json", "report.html", "plan.json"):
        text = (built.out / name).read_text()
        assert str(built.out) not in text and str(Path.home()) not in text, name
        if getpass.getuser() != "root":
            assert getpass.getuser() not in text, name
