"""The pipeline for LiteRT: every stage, the folder, and the commands on what is in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import Ended, edgeprune, files_in, tiny_task

from edgeprune.build import build
from edgeprune.tasks.digits_vit import DigitsVit

# What the module makes once is made on one worker.
pytestmark = pytest.mark.xdist_group("build_litert")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def built(task: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A build for a device that is not at hand, in a folder that held another runtime's file."""
    out = tmp_path_factory.mktemp("work") / "build"
    words = ("build", "--profile", "pixel8", "--runtime", "litert", "--task", task, "--out", out)
    out.mkdir()
    (out / "model.pte").write_text("of an earlier build")
    return out, edgeprune(*words, "--json")


def test_a_build_for_litert_ends_with_a_checked_tflite(built: tuple[Path, Ended]) -> None:
    out, ended = built
    assert ended.exit_code == 6, ended.stderr
    assert "model.tflite" in files_in(out) and "model.pte" not in files_in(out)
    verdict = json.loads((out / "verdict.json").read_text())
    checks = {check["name"]: check for check in verdict["checks"]}
    assert checks["numerics"]["passed"] and checks["score_kept"]["passed"]


def test_the_manifest_names_what_made_the_file(built: tuple[Path, Ended]) -> None:
    manifest = json.loads((built[0] / "manifest.json").read_text())
    assert (manifest["runtime"], manifest["precision"]) == ("litert", "int8")
    assert {"litert-torch", "ai-edge-litert", "ai-edge-quantizer"} <= set(manifest["versions"])
    assert "executorch" not in manifest["versions"]
    assert "model.tflite" in manifest["sha256"]


def test_the_report_says_how_to_make_it_again(built: tuple[Path, Ended]) -> None:
    report = json.loads((built[0] / "report.json").read_text())
    assert "--runtime litert" in report["reproduce"]["command"]
    assert "litert" in (built[0] / "report.html").read_text()


@pytest.mark.nightly
def test_a_build_can_be_validated_again(built: tuple[Path, Ended]) -> None:
    ended = edgeprune("validate", built[0])
    assert ended.exit_code == 6 and "verdict: not measured" in ended.stdout


@pytest.mark.nightly
@pytest.mark.skipif(sys.version_info[:2] > (3, 11), reason="tflite-runtime has no package for it")
def test_an_int8_build_for_the_old_runtime_is_refused(task: str, tmp_path: Path) -> None:
    words = ("--profile", "pixel8", "--runtime", "litert", "--delegate", "off", "--task", task)
    out = tmp_path / "out"
    assert edgeprune("build", *words, "--precision", "int8", "--out", out).exit_code == 6
    ended = edgeprune("validate", out, "--tflite-runtime", "--json")
    checks = {check["name"]: check for check in json.loads(ended.stdout)["checks"]}
    assert ended.exit_code == 1
    assert checks["tflite_runtime"]["passed"] is False and checks["numerics"]["passed"]
    assert "wrong without a word" in checks["tflite_runtime"]["note"]


@pytest.mark.nightly
def test_the_same_build_resumes_to_the_same_file(built: tuple[Path, Ended], task: str) -> None:
    before = (built[0] / "model.tflite").read_bytes()
    words = ("build", "--profile", "pixel8", "--runtime", "litert", "--task", task)
    ended = edgeprune(*words, "--out", built[0])
    assert ended.exit_code == 6 and "resumed from search" in ended.stdout
    assert (built[0] / "model.tflite").read_bytes() == before


@pytest.mark.nightly
def test_lower_and_measure_take_tflite_files(task: str, tmp_path: Path) -> None:
    words = ("lower", task, "--runtime", "litert", "--delegate", "off", "--precision", "fp32")
    ended = edgeprune(*words, "-o", tmp_path / "model.tflite")
    assert ended.exit_code == 0 and "operators delegated" in ended.stdout
    measured = edgeprune("measure", tmp_path / "model.tflite", "--runs", 3, "--json")
    assert len(json.loads(measured.stdout)["samples_ms"]) >= 3


def test_a_file_must_be_named_as_its_runtimes_are(task: str, tmp_path: Path) -> None:
    words = ("lower", task, "--runtime", "litert", "-o", tmp_path / "model.pte", "--quiet")
    ended = edgeprune(*words)
    assert ended.exit_code == 2
    assert "ending in '.pte', wanted '.tflite', as files for litert end" in ended.message
    assert files_in(tmp_path) == []


def test_a_build_without_the_converter_ends_at_once(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.lower.lowering.versions", lambda packages: {})
    words = ("--profile", "pixel8", "--runtime", "litert", "--task", task, "--out", tmp_path)
    ended = edgeprune("build", *words, "--quiet")
    assert ended.exit_code == 2 and "litert-torch" in ended.message
    assert "sites.json" not in files_in(tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_measured_build_meets_its_budget(digits: DigitsVit, tmp_path: Path) -> None:
    asked = {"profile": "host", "runtime": "litert", "budget": "latency=70%", "recover_steps": 60}
    done = build(digits, out=tmp_path / "out", **asked)
    assert done.artifact.path.name == "model.tflite"
    assert done.verdict.check("numerics").passed and done.verdict.timing is not None
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["runtime"] == "litert" and table["versions"]["ai-edge-litert"]
