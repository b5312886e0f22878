"""LiteRT's wheel for Arm runs our delegate, and both give there what they give on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from litert_networks import WIDTH, GroupedCausal, converted
from models import inputs, model, noise
from numpy.typing import NDArray

from edgeprune.kernels.build import build_library
from edgeprune.kernels.targets import host_target
from edgeprune.lower import Lowering, Precision, lower_graph

TOOL = Path(__file__).parents[2] / "tools" / "check_litert_delegate.py"
PROCESSORS = ("max", "cortex-a76", "cortex-a72")


def lowered(name: str, precision: Precision) -> bytes:
    return lower_graph(model(name), inputs(name, batch=1), Lowering(precision, "litert")).data


# The file, the nodes that are ours on Arm, and how far outputs may be apart, of ours and LiteRT's
# own and of two machines: with AVX-512 VNNI int8 linears are ours too, which round x otherwise.
CASES: dict[str, tuple[Callable[[], bytes], int, float]] = {
    "vit fp32": (lambda: lowered("vit", "fp32"), 7, 1e-5),
    "bert int8": (lambda: lowered("bert", "int8"), 7, 2e-2),
    # Enough work for two threads of ours.
    "512 tokens": (lambda: converted(GroupedCausal(), (noise(1, 512, WIDTH, seed=0),)), 1, 1e-5),
}
BY_DAY = ("bert int8",)


def outputs(file: Path, command: list[str], target: str, case: str) -> NDArray[np.float32]:
    """With the delegate for the target, after a comparison with LiteRT's own."""
    _, claimed, tolerance = CASES[case]
    saved = file.with_name("outputs.npz")
    words = [*command, TOOL, file, build_library("litert", target), "--save", saved]
    words += ["--tolerance", tolerance, "--threads", 2]
    ended = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = json.loads(ended.stdout)
    assert said["machine"] == target.split("-")[0]
    assert said["claimed"] >= claimed
    assert said["claimed"] == claimed or target == host_target()
    (output,) = np.load(saved).values()
    saved.unlink()
    return np.asarray(output)


@pytest.mark.parametrize(
    "case",
    [case if case in BY_DAY else pytest.param(case, marks=pytest.mark.nightly) for case in CASES],
)
def test_the_delegate_gives_on_arm_what_it_gives_here(
    case: str, devices: Path, emulate: Callable[[str], list[str]], tmp_path: Path
) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(CASES[case][0]())
    wanted = outputs(file, [sys.executable], host_target(), case)
    folders = f"PYTHONHOME={devices / 'arm64' / 'usr'},PYTHONPATH={devices / 'litert'}"
    python = ["-E", folders, str(devices / "arm64" / "usr" / "bin" / "python3.13")]
    for cpu in PROCESSORS:
        got = outputs(file, [*emulate(cpu), *python], "aarch64-linux", case)
        assert np.abs(got - wanted).max() <= CASES[case][2] * np.abs(wanted).max(), cpu
