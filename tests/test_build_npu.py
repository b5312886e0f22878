"""The pipeline for an NPU: compiled and priced by its vendor's tool, checked before it, not run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import Ended, edgeprune, files_in

# What the module makes once is made on one worker.
pytestmark = [pytest.mark.xdist_group("build_npu"), pytest.mark.nightly]

# A regression that int8 activations hardly move, and one sub-layer, so that few pieces are priced.
TASK = """
import torch
from torch import nn
from edgeprune.task import Task


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Regression(Task):
    score_name = "closeness"
    licence = "none needed"

    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(Block(), nn.Linear(16, 4)).eval()

    def example_inputs(self):
        return (torch.ones(2, 16),)

    def calibration(self):
        rng = torch.Generator().manual_seed(1)
        return [(torch.randn(32, 16, generator=rng),) for _ in range(2)]

    def evaluate(self, predict):
        (x,) = self.calibration()[1]
        with torch.no_grad():
            return torch.cosine_similarity(predict((x,)), self.model()(x)).numpy()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("npu")
    task, out = folder / "regression.py", folder / "build"
    task.write_text(TASK)
    words = ("--profile", "corstone-300-u55", "--task", task, "--budget", "latency=95%")
    return out, edgeprune("build", *words, "--out", out)


def test_a_build_for_an_npu_ends_not_measured_with_a_compiled_file(
    built: tuple[Path, Ended],
) -> None:
    out, ended = built
    assert ended.exit_code == 6, ended.stderr + ended.stdout
    assert {"model.tflite", "model_int8.tflite"} <= set(files_in(out))
    assert b"ethos-u" in (out / "model.tflite").read_bytes()
    assert b"edgeprune." not in (out / "model_int8.tflite").read_bytes()
    verdict = json.loads((out / "verdict.json").read_text())
    checks = {check["name"]: check for check in verdict["checks"]}
    assert checks["on_accelerator"]["passed"] and checks["numerics"]["passed"]
    assert checks["score_kept"]["passed"] and checks["latency_ms"]["passed"] is None


def test_every_number_of_the_compilers_is_called_vendor_estimated(
    built: tuple[Path, Ended],
) -> None:
    out, ended = built
    assert "dense, vendor-estimated" in ended.stdout and "ms vendor-estimated" in ended.stdout
    assert json.loads((out / "table.json").read_text())["provenance"] == "vendor-estimated"
    plan = json.loads((out / "plan.json").read_text())
    assert plan["predicted"]["provenance"] == "vendor-estimated"
    report = json.loads((out / "report.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    assert report["pruned"]["p50_ms"] == {
        "value": manifest["vendor_estimated"]["latency_ms"],
        "provenance": "vendor-estimated",
    }
    assert "vendor-estimated" in (out / "report.html").read_text()
    assert manifest["versions"]["ethos-u-vela"]


def test_what_stays_on_the_cpu_is_listed_with_its_price(built: tuple[Path, Ended]) -> None:
    out, ended = built
    assert "2 operators stay on the CPU, assumed to take" in ended.stdout
    rows = list(csv.DictReader((out / "delegation.csv").open(newline="")))
    left = [row for row in rows if row["delegate"] == "cpu"]
    assert len(left) == 2 and all(float(row["assumed_ms"]) and row["why_not"] for row in left)


def test_a_build_for_an_npu_can_be_validated_again(built: tuple[Path, Ended]) -> None:
    ended = edgeprune("validate", built[0])
    assert ended.exit_code == 6 and "vendor-estimated, not measured" in ended.stdout


def test_nothing_here_is_asked_to_run_an_npus_file(built: tuple[Path, Ended]) -> None:
    task = built[0].parent / "regression.py"
    words = ("--profile", "corstone-300-u55", "--device", "local", "--task", task, "--quiet")
    ended = edgeprune("build", *words, "--out", built[0].parent / "other")
    assert ended.exit_code == 2
