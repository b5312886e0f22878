"""Lowered files give on Arm, in ExecuTorch without Python, what they give on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from models import inputs, model
from native_programs import compiled_runner, zig
from numpy.typing import NDArray

from edgeprune.devices import connect
from edgeprune.kernels.build import build_library
from edgeprune.lower import Lowering, lower_graph
from edgeprune.validate.numerics import MAX_ERROR

# Of the largest output. XNNPACK adds up in another order on every processor.
TOLERANCE = 1e-5
PROCESSORS = ("max", "cortex-a76", "cortex-a72")
# The last is for this machine: on Arm, linear layers stay with XNNPACK. Ours run there too.
LOWERINGS = (Lowering("fp32"), Lowering("int8"), Lowering("int8", isa=("avx512_vnni",)))


class File(NamedTuple):
    """A lowered file, its inputs beside it."""

    path: Path
    inputs: tuple[Path, ...]
    ours: frozenset[str]

    @classmethod
    def lowered(cls, name: str, lowering: Lowering, folder: Path) -> File:
        example = inputs(name, batch=1)
        made = lower_graph(model(name), example, lowering)
        path = folder / "model.pte"
        path.write_bytes(made.data)
        places = tuple(folder / f"input{number}" for number in range(len(example)))
        for place, each in zip(places, example, strict=True):
            place.write_bytes(each.numpy().tobytes())
        ours = (row.op.split(".")[1] for row in made.delegation if row.delegate == "edgeprune")
        return cls(path, places, frozenset(ours))

    def run_by(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """The runner; outputs come to lie beside the file."""
        words = [*command, str(self.path), str(self.path.parent), *map(str, self.inputs)]
        return subprocess.run(words, capture_output=True, text=True)


def on_this_machine(file: File, name: str) -> NDArray[np.float32]:
    with connect("local") as device, device.predictor(file.path) as predict:
        return predict(inputs(name, batch=1)).numpy()


@pytest.fixture(scope="module")
def runner(devices: Path) -> str:
    return str(compiled_runner(zig("aarch64-linux-gnu.2.28"), devices / "executorch"))


@pytest.fixture(scope="module")
def with_delegate(runner: str, devices: Path) -> list[str]:
    library = build_library("executorch", "aarch64-linux", sdk=devices / "executorch")
    return [runner, "--library", str(library)]


@pytest.mark.parametrize("lowering", LOWERINGS, ids=["fp32", "int8", "int8 with our linears"])
@pytest.mark.parametrize("name", ["vit", "torch_encoder"])
def test_a_lowered_file_gives_on_arm_what_it_gives_here(
    name: str,
    lowering: Lowering,
    with_delegate: list[str],
    emulate: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    file = File.lowered(name, lowering, tmp_path)
    assert {"slim_attention", "add_layer_norm"} <= file.ours
    assert ("linear_int8" in file.ours) == bool(lowering.isa)
    wanted = on_this_machine(file, name)
    for cpu in PROCESSORS:
        ended = file.run_by([*emulate(cpu), *with_delegate])
        assert ended.returncode == 0, ended.stderr
        got = np.frombuffer((tmp_path / "0").read_bytes(), np.float32).reshape(wanted.shape)
        assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max(), cpu


def test_an_fp16_file_gives_on_arm_what_it_gives_here_within_half_floats(
    with_delegate: list[str], emulate: Callable[[str], list[str]], tmp_path: Path
) -> None:
    file = File.lowered("torch_encoder", Lowering("fp16"), tmp_path)
    assert {"slim_attention", "add_layer_norm"} <= file.ours
    wanted = on_this_machine(file, "torch_encoder")
    for cpu in PROCESSORS:
        ended = file.run_by([*emulate(cpu), *with_delegate])
        assert ended.returncode == 0, ended.stderr
        got = np.frombuffer((tmp_path / "0").read_bytes(), np.float32).reshape(wanted.shape)
        assert np.abs(got - wanted).max() <= MAX_ERROR["fp16"] * np.abs(wanted).max(), cpu


def test_without_our_library_a_file_says_what_it_lacks_and_needs_none_when_off(
    runner: str, emulate: Callable[[str], list[str]], tmp_path: Path
) -> None:
    command = [*emulate("max"), runner]
    ended = File.lowered("vit", Lowering("int8"), tmp_path).run_by(command)
    assert ended.returncode == 1
    lacks = "Backend EdgepruneDelegate_of_libedgeprune_executorch_so is not registered"
    assert lacks in ended.stderr
    off = File.lowered("vit", Lowering("int8", delegate="off"), tmp_path)
    assert not off.ours
    ended = off.run_by(command)
    assert ended.returncode == 0, ended.stderr


def test_a_damaged_region_is_an_error_on_arm(
    with_delegate: list[str], emulate: Callable[[str], list[str]], tmp_path: Path
) -> None:
    file = File.lowered("vit", LOWERINGS[-1], tmp_path)
    data = file.path.read_bytes()
    start = data.index(b"EPRG")
    for place in (0, 4, 8, 60, 200, 900):
        damaged = bytearray(data)
        damaged[start + place : start + place + 4] = b"\xff\xff\xff\x7f"
        file.path.write_bytes(damaged)
        ended = file.run_by([*emulate("max"), *with_delegate])
        assert ended.returncode == 1, f"at {place}: {ended.stderr}"
        assert "edgeprune: a region cannot be loaded" in ended.stderr
