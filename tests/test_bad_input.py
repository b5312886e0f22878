"""Bad input: exit code 2, one clear line on standard error, and nothing half-written."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Ended, edgeprune, files_in, start, tiny_task
from torch import Tensor, nn

from edgeprune import files
from edgeprune.program import Program, capture


class TwoLayers(nn.Module):
    """``[batch, 6]`` to ``[batch, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder of its own: ``edgeprune.toml`` and relative paths are looked up there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captured model in a file."""
    torch.manual_seed(0)
    model = TwoLayers()
    path = tmp_path_factory.mktemp("saved") / "model.pt2"
    capture(model, (torch.randn(2, 6),)).save(path)
    return path


def refused(*words: object) -> Ended:
    """Run a command that must refuse its input before anything was written."""
    ended = edgeprune(*words)
    assert ended.exit_code == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not files_in(Path("out")), "half-written"
    return ended


def refused_build(*words: object) -> str:
    """The message of a refused ``edgeprune build --out out --profile pixel8 …``."""
    profile = () if "--profile" in words else ("--profile", "pixel8")
    return refused("build", "--quiet", "--out", "out", *profile, *words).message


def test_an_unknown_profile_gets_near_misses() -> None:
    message = refused_build("--profile", "pixel", "--task", "digits-vit")
    assert "there is no profile 'pixel'" in message and "pixel8" in message


def test_nothing_given_says_what_to_give() -> None:
    assert "--profile" in refused("build").message
    assert "--task" in refused_build()
    assert "one of them" in refused_build("--task", "digits-vit", "--model", "m.pt2")
    assert "--calibration" in refused_build("--model", "m.pt2")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version = 1\nname = ", "mine.toml, line 2, column 8: not TOML"),
        (
            'version = 1\n\nnmae = "x"',
            "mine.toml, line 3: 'nmae': unknown key; did you mean 'name'",
        ),
        ("version = 99", "mine.toml: format version 99 is from a newer edgeprune"),
    ],
)
def test_a_broken_profile_is_named_with_its_line(text: str, problem: str) -> None:
    Path("mine.toml").write_text(text)
    assert problem in refused_build("--profile", "mine.toml", "--task", "digits-vit")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed = 1\nbudget = [", "edgeprune.toml, line 2"),
        ('seed = 1\nbudgett = "latency=60%"', "edgeprune.toml, line 2: 'budgett': unknown key"),
        ("version = 99", "edgeprune.toml: format version 99 is from a newer edgeprune"),
    ],
)
def test_a_broken_edgeprune_toml_is_named_with_its_line(text: str, problem: str) -> None:
    Path("edgeprune.toml").write_text(text)
    assert problem in refused_build("--task", "digits-vit")


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ("fast", "not of the form key=value"),
        ("latency=quick", "wanted a number"),
        ("latency=0%", "more than zero"),
        ("latency=-3ms", "more than zero"),
        ("latncy=60%", "did you mean 'latency'"),
    ],
)
def test_a_budget_that_is_none_is_refused(budget: str, problem: str) -> None:
    message = refused_build("--task", "digits-vit", "--budget", budget)
    assert problem in message and "latency=60%" in message


@pytest.mark.parametrize(
    ("flag", "value"), [("--criterion", "l7"), ("--solver", "oracle"), ("--device", "toaster")]
)
def test_an_unknown_choice_lists_the_known_ones(flag: str, value: str) -> None:
    message = refused_build("--task", "digits-vit", flag, value)
    assert f"'{value}': unknown" in message and "there are" in message


def test_a_missing_or_raising_task_file_is_named() -> None:
    assert "absent.py: no such task file" in refused_build("--task", "absent.py")
    Path("bad.py").write_text("x = 1\nx.nothing\n")
    message = refused_build("--task", "bad.py")
    assert "AttributeError" in message and "(line 2)" in message
    assert "Did you mean" in refused_build("--task", "digit-vit")


@pytest.mark.parametrize(
    "method",
    ["model", "example_inputs", "calibration", pytest.param("evaluate", marks=pytest.mark.nightly)],
)
def test_a_task_whose_method_raises_is_named_with_its_line(method: str) -> None:
    text = Path(tiny_task(Path.cwd())).read_text()
    start = text.index(f"def {method}(self")
    place = text.index("\n", start) + 1
    Path("tiny.py").write_text(text[:place] + "        {}['words']\n" + text[place:])
    ended = edgeprune(
        "build", "--quiet", "--out", "out", "--profile", "pixel8", "--task", "tiny.py"
    )
    line = text[:place].count("\n") + 1
    assert ended.exit_code == 2
    assert f"task Tiny: {method}() raised KeyError: 'words' (line {line})" in ended.message
    assert "verdict.json" not in files_in(Path("out"))


def test_a_model_that_cannot_be_exported_gets_torchs_reason_in_one_line() -> None:
    task = Path(tiny_task(Path.cwd()))
    text = task.read_text().replace(
        "        x = x + self.out", "        if x.sum() > 0: x = 2 * x\n        x = x + self.out"
    )
    task.write_text(text)
    message = refused_build("--task", task)
    assert "torch.export cannot capture Sequential" in message and len(message) < 500
    whole = refused("build", "--profile", "pixel8", "--task", task, "--out", "out", "-v", "--quiet")
    assert message in whole.stderr and whole.stderr.count("\n") > 3


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.ones((20, 7), np.float32), "got shape [20, 7], wanted [examples, 6]"),
        (np.full((20, 6), np.nan, np.float32), "NaN or infinity in example 0"),
    ],
)
def test_calibration_that_does_not_fit_the_model_is_refused(
    saved: Path, array: np.ndarray, problem: str
) -> None:
    np.savez("calibration.npz", x=array)
    message = refused_build("--model", saved, "--calibration", "calibration.npz")
    assert problem in message and "calibration.npz" in message


def test_a_tasks_own_calibration_is_checked_too() -> None:
    task = Path(tiny_task(Path.cwd()))
    task.write_text(
        task.read_text().replace("randn(16, 8, 16, generator=rng)", "zeros(16, 8, 16)/0")
    )
    assert "NaN or infinity" in refused_build("--task", task)


def plan_file(**changes: object) -> Path:
    body = {"program": "0" * 32, "kept": {}, "tokens": {}} | changes
    return files.write_json("plan.json", "plan", body)


def test_a_plan_of_another_model_is_refused(saved: Path) -> None:
    message = refused("apply", saved, plan_file(), "-o", "out/slim.pt2").message
    assert "made for a model with fingerprint 000" in message
    assert Program.load(saved).fingerprint in message


def test_a_plan_that_is_damaged_or_from_the_future_is_refused(saved: Path) -> None:
    path = plan_file()
    text = path.read_text()
    for change, problem in (
        (text.replace('"version": 1', '"version": 9'), "format version 9 is from a newer"),
        (text[: len(text) // 2], "not JSON"),
        (text.replace("edgeprune.plan", "edgeprune.sites"), "wanted 'edgeprune.plan'"),
        (json.dumps(json.loads(text) | {"kept": 3}), "not a"),
    ):
        path.write_text(change)
        assert problem in refused("apply", saved, path, "-o", "out/slim.pt2").message


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_model_file_is_refused_by_every_command(saved: Path, part: float) -> None:
    cut = Path("cut.pt2")
    cut.write_bytes(saved.read_bytes()[: int(part * saved.stat().st_size)])
    np.savez("calibration.npz", x=np.ones((20, 6), np.float32))
    for message in (
        refused("inspect", cut).message,
        refused("apply", cut, plan_file(), "-o", "out/slim.pt2").message,
        refused("lower", cut, "-o", "out/model.pte", "--profile", "pixel8").message,
        refused_build("--model", cut, "--calibration", "calibration.npz"),
    ):
        assert "cut.pt2: not a readable .pt2" in message


def test_a_truncated_lowered_file_is_refused(saved: Path) -> None:
    assert edgeprune("lower", saved, "-o", "good/model.pte", "--profile", "pixel8").exit_code == 0
    whole = Path("good/model.pte").read_bytes()
    Path("good/model.pte").write_bytes(whole[: len(whole) // 2])
    assert "Was it cut short?" in refused("measure", "good/model.pte").message
    # With a manifest that fits, the runtime itself has to say no.
    manifest = Path("good/manifest.json")
    body = json.loads(manifest.read_text())
    body["sha256"]["model.pte"] = files.sha256_of("good/model.pte")
    manifest.write_text(json.dumps(body))
    assert "the runtime could not load it" in refused("measure", "good/model.pte").message
    Path("good/model.pte").unlink()
    assert "model.pte: no such file" in refused("measure", "good/model.pte").message


def test_a_folder_that_is_no_build_is_refused() -> None:
    assert "resolved.toml" in refused("validate", ".").message
    assert "report.json: cannot be read" in refused("report", ".").message


def test_a_lowered_file_without_its_manifest_is_refused() -> None:
    Path("alone.pte").write_bytes(b"anything")
    assert "alone.pte: no manifest.json beside it" in refused("measure", "alone.pte").message


def test_lowering_does_not_orphan_another_files_manifest(saved: Path) -> None:
    files.write_json("manifest.json", "manifest", {"sha256": {"model.pte": "0"}})
    before = Path("manifest.json").read_bytes()
    message = refused("lower", saved, "-o", "other.pte", "--profile", "pixel8").message
    assert "describes another file" in message
    assert Path("manifest.json").read_bytes() == before and not Path("other.pte").exists()


def test_an_out_folder_that_cannot_be_written_is_refused(saved: Path) -> None:
    Path("file").write_text("in the way")
    task = tiny_task(Path.cwd())
    message = refused(
        "build", "--profile", "pixel8", "--task", task, "--out", "file/out", "--quiet"
    )
    assert "file/out: cannot be written to" in message.message
    Path("in").mkdir()
    fingerprint = Program.load(saved).fingerprint
    message = refused("apply", saved, plan_file(program=fingerprint), "-o", "file/slim.pt2")
    assert "cannot write here" in message.message
    # Long work is not begun for a page that cannot be written.
    for words in (("audit", task, "no-plan.json", "-o"), ("inspect", task, "--html")):
        assert "cannot write here" in refused(*words, "file/page.html").message


def full_disk(limit_bytes: int) -> Callable[[], None]:
    """Let no file grow beyond a size: the writes fail as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def test_a_disk_that_fills_up_leaves_nothing_behind(saved: Path) -> None:
    plan = plan_file(program=Program.load(saved).fingerprint)
    words = ("apply", saved, plan, "-o", "out/slim.pt2")
    with start(*words, prepare=full_disk(4000)) as process:
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2, stderr
    assert "slim.pt2: writing failed" in stderr and stderr.count("\n") == 1
    assert files_in(Path("out")) == []


@pytest.mark.parametrize(
    ("limit_bytes", "file"),
    [
        (500, "sites.json"),
        pytest.param(30_000, "refitted", marks=pytest.mark.nightly),
        pytest.param(1_000_000, "report.html", marks=pytest.mark.nightly),
    ],
)
def test_a_build_on_a_full_disk_leaves_nothing_half_written(limit_bytes: int, file: str) -> None:
    task = tiny_task(Path.cwd())
    words = ("build", "--profile", "pixel8", "--task", task, "--out", "out", "--quiet")
    with start(*words, prepare=full_disk(limit_bytes)) as process:
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2, stderr
    assert "writing failed" in stderr and stderr.count("\n") == 1
    assert file in stderr
    left = files_in(Path("out"))
    assert not any(Path(name).name.startswith((".", file)) for name in left)
    for name in left:
        if name.endswith(".json"):
            json.loads(Path("out", name).read_text())
