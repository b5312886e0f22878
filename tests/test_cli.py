"""The command as a user meets it: options, exit codes, output, and one build through all of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from command_line import ENVIRONMENT, Ended, edgeprune, files_in, start, tiny_task
from typer.testing import CliRunner

import edgeprune as ep
from edgeprune.cli.app import Ending, Outcome, command
from edgeprune.cli.job import read_job
from edgeprune.config import load_config
from edgeprune.errors import EdgepruneError
from edgeprune.program import capture
from edgeprune.task import load_task

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("cli")

COMMANDS = (
    *("build", "inspect", "plan", "apply", "lower", "validate", "measure", "profiles"),
    *("devices", "kernels", "report", "doctor", "tables", "criteria", "audit", "export-hf"),
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def built(task: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A build for a device that is not at hand, interrupted twice on its way."""
    out = tmp_path_factory.mktemp("work") / "build"
    words = ("build", "--profile", "pixel8", "--task", task, "--out", out)
    for stage in ("4/9", "7/9"):
        _interrupted_at(stage, *words)
        assert not [name for name in files_in(out) if Path(name).name.startswith(".")]
        for name in files_in(out):
            if name.endswith(".json"):
                json.loads((out / name).read_text())
    return out, edgeprune(*words, "--json")


def _interrupted_at(stage: str, *words: object) -> None:
    with start(*words) as process:
        assert process.stdout is not None
        while f"stage {stage}" not in (line := process.stdout.readline()):
            assert line, "ended before the stage"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr == "stopped; run the same command again to continue\n"


def test_help_names_every_command_and_loads_no_torch() -> None:
    text = edgeprune("--help").stdout
    assert all(f" {name} " in text for name in COMMANDS)
    code = "import sys, edgeprune.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


def test_the_version_can_be_asked_of_any_command() -> None:
    assert edgeprune("--version").stdout == f"edgeprune {ep.__version__}\n"
    assert edgeprune("build", "--version").stdout == f"edgeprune {ep.__version__}\n"


@pytest.mark.parametrize("words", [("--json", "devices"), ("devices", "--json")])
def test_json_may_stand_before_or_after_the_command(words: tuple[str, ...]) -> None:
    ended = edgeprune(*words)
    assert "local" in json.loads(ended.stdout)
    assert "processor" in ended.stderr


def test_quiet_says_nothing() -> None:
    ended = edgeprune("devices", "--quiet")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", "")


def test_criteria_lists_what_each_needs_and_where_it_applies() -> None:
    found = json.loads(edgeprune("criteria", "--json").stdout)["criteria"]
    by_name = {each["name"]: each for each in found}
    assert by_name["gate_taylor"]["needs"] == "labels"
    assert by_name["bn_scale"]["applies_to"] == "channels with a batch norm"
    assert "obs (default)" in edgeprune("criteria").stdout


def test_profiles_lists_every_device_and_whether_it_was_measured() -> None:
    found = json.loads(edgeprune("profiles", "--json").stdout)["profiles"]
    names = {profile["name"]: profile["estimated"] for profile in found}
    assert names["host"] is False and names["pixel8"] is True and len(names) >= 11
    assert "raspberrypi5" in edgeprune("profiles").stdout


def test_flags_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edgeprune.toml").write_text(
        'profile = "pixel7"\nmodel = "a.pt2"\ncalibration = "a.npz"\nseed = 3\nthreads = 2\n'
    )
    job = read_job(task="digits-vit", profile="pixel8", seed=0)
    assert (job.settings.profile, job.settings.seed, job.settings.threads) == ("pixel8", 0, 2)
    assert job.task.name == "digits-vit"
    assert job.settings.out == Path("build/digits-vit-pixel8")


def test_a_build_stopped_twice_goes_on_and_ends_not_measured(built: tuple[Path, Ended]) -> None:
    out, ended = built
    assert ended.exit_code == 6
    assert "resumed from damage" in ended.stderr and "resumed from search" in ended.stderr
    assert "parameters (none needed)" in ended.stderr, "the licence"
    assert "the Google Edge TPU cannot be lowered to yet; using executorch" in ended.stderr
    document = json.loads(ended.stdout)
    assert document["verdict"]["status"] == "not_measured" and document["exit_code"] == 6
    whole = {"model.pte", "manifest.json", "plan.json", "sites.json", "table.json"}
    whole |= {"verdict.json", "delegation.csv", "report.html", "report.json", "resolved.toml"}
    assert whole <= set(files_in(out))


def test_what_was_used_is_written_as_flags(built: tuple[Path, Ended], task: str) -> None:
    used = load_config(built[0] / "resolved.toml")
    assert used["task"] == f"{task}:Tiny" and used["profile"] == "pixel8" and used["seed"] == 0
    assert used["budget"] == str(ep.load_profile("pixel8").budget)
    assert used["precision"] == "int8" and "device" not in used


def test_a_build_can_be_validated_and_reported_again(built: tuple[Path, Ended]) -> None:
    out, _ = built
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert edgeprune("report", out).exit_code == 0
    assert (out / "report.html").read_bytes() == page
    before = ep.Verdict.read(out / "verdict.json")
    ended = edgeprune("validate", out)
    assert ended.exit_code == 6 and "verdict: not measured" in ended.stdout
    after = ep.Verdict.read(out / "verdict.json")
    assert after.check("latency_ms") == before.check("latency_ms")
    assert after.scores == before.scores


def test_plan_stops_at_the_plan_that_build_uses(
    built: tuple[Path, Ended], task: str, tmp_path: Path
) -> None:
    words = ("plan", "--profile", "pixel8", "--task", task, "--out", tmp_path / "out")
    ended = edgeprune(*words, "--json")
    assert ended.exit_code == 6
    assert json.loads(ended.stdout)["estimated"] is True
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["predicted"]["provenance"] == (
        "estimated"
    )
    assert json.loads(ended.stdout)["plan"] == json.loads(built[1].stdout)["plan"]
    assert "model.pte" not in files_in(tmp_path / "out")


def test_the_report_says_how_to_make_it_again(built: tuple[Path, Ended]) -> None:
    command = json.loads((built[0] / "report.json").read_text())["reproduce"]["command"]
    budget = ep.load_profile("pixel8").budget
    assert command == (
        f"edgeprune build --profile pixel8 --task tiny.py:Tiny --budget {budget} "
        "--precision int8 --runtime executorch --delegate auto --seed 0 --recover-minutes 12"
    )


@pytest.mark.nightly
def test_exact_steps_give_the_same_file_in_another_folder(tmp_path: Path) -> None:
    text = Path(tiny_task(tmp_path)).read_text()
    stream = """
    def train_batches(self):
        rng = torch.Generator().manual_seed(2)
        while True:
            yield (torch.randn(16, 8, 16, generator=rng),)
"""
    (tmp_path / "tiny.py").write_text(text + stream)
    made = []
    for name in ("one", "two"):
        words = ("build", "--profile", "pixel8", "--task", tmp_path / "tiny.py", "--json")
        steps = ("--recover-steps", 6, "--criterion", "l1", "--out", tmp_path / name)
        assert edgeprune(*words, *steps).exit_code == 6
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["recovery"]["steps"] == 6
        assert "--criterion l1 --recover-steps 6" in report["reproduce"]["command"]
        made.append((manifest["plan"], manifest["sha256"]["model.pte"]))
    assert made[0] == made[1]


STAGE_FUNCTIONS = (
    *("profile_stage", "capture_stage", "sites_stage", "score_stage", "cost_stage"),
    *("solve_stage", "recover_stage", "lower_stage", "validate_stage"),
)


@pytest.mark.nightly
def test_ctrl_c_in_any_stage_leaves_whole_files_and_the_build_goes_on(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    words = ("build", "--profile", "pixel8", "--task", task, "--out", tmp_path / "out")
    for name in STAGE_FUNCTIONS:
        with monkeypatch.context() as patch:
            patch.setattr(f"edgeprune.build.{name}", interrupted)
            ended = edgeprune(*words, "--quiet")
        assert ended.exit_code == 130
        assert ended.message == "stopped; run the same command again to continue"
        assert "verdict.json" not in files_in(tmp_path / "out")
    ended = edgeprune(*words)
    assert ended.exit_code == 6
    assert all(f"resumed from {name}" in ended.stdout for name in ("damage", "search", "refitted"))


@pytest.mark.nightly
def test_a_build_that_was_killed_goes_on(task: str, tmp_path: Path) -> None:
    words = ("build", "--profile", "pixel8", "--task", task, "--out", tmp_path / "out")
    with start(*words) as process:
        assert process.stdout is not None
        while "stage 6/9" not in (line := process.stdout.readline()):
            assert line, "ended before the stage"
        process.kill()
    ended = edgeprune(*words)
    assert ended.exit_code == 6 and "resumed from damage" in ended.stdout


def test_this_machine_does_not_measure_in_a_phones_name(task: str, tmp_path: Path) -> None:
    words = ("--profile", "pixel8", "--device", "local", "--task", task, "--out", tmp_path / "out")
    ended = edgeprune("build", *words, "--quiet")
    assert ended.exit_code == 2
    assert "is no Google Pixel 8: it has no 'Pixel 8' in its name, neon" in ended.message
    assert files_in(tmp_path / "out") == []


def test_estimates_are_for_one_thread(task: str, tmp_path: Path) -> None:
    words = ("--profile", "pixel8", "--threads", 4, "--task", task, "--out", tmp_path / "out")
    ended = edgeprune("plan", *words, "--quiet")
    assert ended.exit_code == 2 and "got 4 threads without a device" in ended.message


@pytest.mark.nightly
def test_another_plan_in_a_finished_folder_takes_its_conclusions_away(
    built: tuple[Path, Ended], task: str, tmp_path: Path
) -> None:
    out = shutil.copytree(built[0], tmp_path / "out")
    words = ("--profile", "pixel8", "--task", task, "--budget", "latency=90%", "--out", out)
    assert edgeprune("plan", *words).exit_code == 6
    assert not {"verdict.json", "report.html", "resolved.toml"} & set(files_in(out))


@pytest.mark.nightly
def test_a_saved_model_and_its_inputs_are_enough(task: str, tmp_path: Path) -> None:
    tiny = load_task(task)
    program = capture(tiny.model(), tiny.example_inputs(), input_names=("x",))
    program.save(tmp_path / "model.pt2")
    np.savez(tmp_path / "inputs.npz", x=torch.randn(60, 8, 16).numpy())
    words = ("--model", tmp_path / "model.pt2", "--calibration", tmp_path / "inputs.npz")
    out = tmp_path / "out"
    assert edgeprune("build", "--profile", "pixel8", *words, "--out", out).exit_code == 6
    report = json.loads((out / "report.json").read_text())
    assert report["dense"]["score"]["value"] == pytest.approx(1.0)
    assert "--model model.pt2 --calibration inputs.npz" in report["reproduce"]["command"]


def test_a_bound_nothing_can_meet_ends_in_3_and_says_what_is_reachable(
    built: tuple[Path, Ended], task: str, tmp_path: Path
) -> None:
    out = shutil.copytree(built[0], tmp_path / "out")
    words = ("--profile", "pixel8", "--task", task, "--budget", "size=0.1KB")
    ended = edgeprune("plan", *words, "--out", out, "--quiet")
    assert ended.exit_code == 3
    assert "size" in ended.message and "MB" in ended.message


def test_apply_lower_and_measure_go_from_a_plan_to_milliseconds(
    built: tuple[Path, Ended], task: str, tmp_path: Path
) -> None:
    slim, model = tmp_path / "slim.pt2", tmp_path / "model.pte"
    applied = json.loads(
        edgeprune("apply", task, built[0] / "plan.json", "-o", slim, "--json").stdout
    )
    assert applied["parameters"] < applied["parameters_before"]
    assert edgeprune("lower", slim, "-o", model, "--profile", "pixel8").exit_code == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["plan"] == applied["plan"] and manifest["profile"] == "pixel8"
    measured = json.loads(edgeprune("measure", model, "--runs", 3, "--json").stdout)
    assert len(measured["samples_ms"]) >= 3 and measured["peak_memory_mb"] > 0


@pytest.mark.nightly
def test_two_files_are_measured_in_turns_and_one_for_minutes(built: tuple[Path, Ended]) -> None:
    model = built[0] / "model.pte"
    ended = edgeprune("measure", model, model, "--runs", 9, "--json")
    document = json.loads(ended.stdout)
    (ratio,) = document["ratios"].values()
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    counts = {len(each["samples_ms"]) for each in document["models"].values()}
    assert len(document["models"]) == 2 and len(counts) == 1 and min(counts) >= 9
    assert "'s time (95%: " in ended.stderr
    ended = edgeprune("measure", model, "--sustained", 0.001, "--json")
    document = json.loads(ended.stdout)
    assert sum(each["runs"] for each in document["windows"]) == len(document["samples_ms"])
    refused = edgeprune("measure", model, model, "--sustained", 1, "--quiet")
    assert refused.exit_code == 2 and "got 2 files or signatures, wanted one" in refused.message


@pytest.mark.nightly
def test_a_build_is_held_to_a_latency_on_another_device(
    built: tuple[Path, Ended], tmp_path: Path
) -> None:
    ended = edgeprune("validate", built[0], "--device", "local", "--quiet")
    assert ended.exit_code == 2 and "is no Google Pixel 8" in ended.message
    out = shutil.copytree(built[0], tmp_path / "out")
    used = (out / "resolved.toml").read_text()
    (out / "resolved.toml").write_text(used.replace('"pixel8"', '"host"'))
    words = ("validate", out, "--device", "local", "--json", "--budget")
    ended = edgeprune(*words, "latency=0.001us")
    assert ended.exit_code == 4 and json.loads(ended.stdout)["status"] == "over_budget"
    ended = edgeprune(*words, "latency=1s")
    assert {c["name"]: c for c in json.loads(ended.stdout)["checks"]}["latency_ms"]["passed"]


def _failing(error: BaseException) -> typer.Typer:
    group = typer.Typer(cls=Ending)

    def fail() -> Outcome:
        raise error

    command("fail", group=group)(fail)
    command("other", group=group)(fail)
    return group


def test_details_and_tracebacks_are_for_those_who_ask() -> None:
    runner = CliRunner()
    explained = _failing(EdgepruneError("it broke", detail="the long story"))
    assert runner.invoke(explained, ["fail"]).stderr == "it broke\n"
    assert runner.invoke(explained, ["fail", "-v"]).stderr == "it broke\nthe long story\n"
    surprised = _failing(ZeroDivisionError("no reason\nmore"))
    short, long = (runner.invoke(surprised, ["fail", *v]) for v in ([], ["-v"]))
    assert short.exit_code == long.exit_code == 1
    assert "ZeroDivisionError: no reason" in short.stderr and "Traceback" not in short.stderr
    assert short.stderr.count("\n") == 1
    assert "Traceback" in long.stderr and "please report" in long.stderr


def test_the_package_offers_the_same_verbs() -> None:
    assert callable(ep.build) and callable(ep.solve) and callable(ep.validate)
    with pytest.raises(ep.InputError, match="precision"):
        ep.Lowering("int3")
    from edgeprune.lower import lower

    assert lower.__name__ == "lower" and callable(ep.lower)
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        ep.prune  # noqa: B018
