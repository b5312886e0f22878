"""The command as a user meets it: options, exit codes, output, and one build through all of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_line import ENVIRONMENT, Ended, edgeprune, files_in, start, tiny_task
from typer.testing import CliRunner

import edgeprune as ep
from edgeprune.cli.app import Ending, Outcome, command
from edgeprune.cli.job import read_job
from edgeprune.config import load_config
from edgeprune.errors import EdgepruneError

COMMANDS = (
    *("build", "inspect", "plan", "apply", "lower", "validate", "measure", "profiles"),
    *("devices", "report", "doctor"),
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
    assert "local" in json.loads(ended.stdout)["kinds"]
    assert "processor" in ended.stderr


def test_quiet_says_nothing() -> None:
    ended = edgeprune("devices", "--quiet")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", "")


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
    document = json.loads(ended.stdout)
    assert document["verdict"]["status"] == "not_measured" and document["exit_code"] == 6
    whole = {"model.pte", "manifest.json", "plan.json", "sites.json", "table.json"}
    whole |= {"verdict.json", "delegation.csv", "report.html", "report.json", "resolved.toml"}
    assert whole <= set(files_in(out))


def test_what_was_used_is_written_as_flags(built: tuple[Path, Ended], task: str) -> None:
    used = load_config(built[0] / "resolved.toml")
    assert used["task"] == task and used["profile"] == "pixel8" and used["seed"] == 0
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
    assert ended.exit_code == 0
    assert json.loads(ended.stdout)["plan"] == json.loads(built[1].stdout)["plan"]
    assert "model.pte" not in files_in(tmp_path / "out")


def test_a_bound_nothing_can_meet_ends_in_3_and_says_what_is_reachable(
    built: tuple[Path, Ended], task: str
) -> None:
    words = ("--profile", "pixel8", "--task", task, "--budget", "size=0.1KB")
    ended = edgeprune("plan", *words, "--out", built[0], "--quiet")
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
    assert len(measured["samples_ms"]) == 3 and measured["peak_memory_mb"] > 0


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
        ep.lower(None, "x.pte", "int3")
    from edgeprune.lower import lower

    assert lower.__name__ == "lower" and callable(ep.lower)
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        ep.prune  # noqa: B018
