"""Lowered files give on Arm, in ExecuTorch without Python, what they give on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import inputs, model
from native_programs import compiled_runner, zig
from numpy.typing import NDArray

from edgeprune.devices import connect
from edgeprune.lower import Lowering, Precision, lower_graph

# Of the largest output. XNNPACK adds up in another order on every processor.
TOLERANCE = 1e-5
PROCESSORS = ("max", "cortex-a76", "cortex-a72")


def on_this_machine(file: Path, name: str) -> NDArray[np.float32]:
    with connect("local") as device, device.predictor(file) as predict:
        return predict(inputs(name, batch=1)).numpy()


def on_arm(command: list[str], file: Path, name: str) -> NDArray[np.float32]:
    """As the runner gives it; inputs and outputs pass through files beside the model."""
    folder = file.parent
    places = []
    for number, each in enumerate(inputs(name, batch=1)):
        places.append(folder / f"input{number}")
        places[-1].write_bytes(each.numpy().tobytes())
    words = [*command, str(file), str(folder), *map(str, places)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return np.frombuffer((folder / "0").read_bytes(), np.float32)


@pytest.fixture(scope="module")
def runner(devices: Path) -> Path:
    return compiled_runner(zig("aarch64-linux-gnu.2.28"), devices / "executorch")


# Kernels of our own come here once lowered files call them: their library, built for Arm, is given
# to the runner as ``--library``.
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["vit", "torch_encoder"])
def test_a_lowered_file_gives_on_arm_what_it_gives_here(
    name: str,
    precision: Precision,
    runner: Path,
    emulate: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "model.pte"
    lowered = lower_graph(model(name), inputs(name, batch=1), Lowering(precision))
    assert lowered.delegated_nodes > 0
    file.write_bytes(lowered.data)
    wanted = on_this_machine(file, name)
    for cpu in PROCESSORS:
        got = on_arm([*emulate(cpu), str(runner)], file, name).reshape(wanted.shape)
        assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max(), cpu
