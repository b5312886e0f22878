"""Lowered files give on Arm, where there is no Python, what they give on this machine."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from desks import Desk
from models import inputs, model
from numpy.typing import NDArray

from edgeprune.devices import connect
from edgeprune.devices.bundle import Bundle, find_bundle
from edgeprune.devices.runner import Job
from edgeprune.lower import Lowering, lower_graph
from edgeprune.validate.numerics import MAX_ERROR

# Of the largest output. XNNPACK adds up in another order on every processor.
TOLERANCE = 1e-5
# With AVX-512 VNNI, LiteRT's int8 linears are ours, which round x otherwise than XNNPACK's.
LITERT_INT8 = 2e-2
PROCESSORS = ("max", "cortex-a76", "cortex-a72")
OURS = {"slim_attention", "add_layer_norm"}
# The second is for this machine: on Arm, linear layers stay with XNNPACK. Ours run there too.
CASES = {
    "fp32": (Lowering("fp32"), TOLERANCE),
    "int8": (Lowering("int8"), TOLERANCE),
    "int8 with our linears": (Lowering("int8", isa=("avx512_vnni",)), TOLERANCE),
    "litert fp32": (Lowering("fp32", "litert"), TOLERANCE),
    "litert int8": (Lowering("int8", "litert"), LITERT_INT8),
}
BY_DAY = (
    *(("vit", "int8 with our linears"), ("torch_encoder", "fp32")),
    ("torch_encoder", "litert fp32"),
)


@pytest.fixture(scope="module")
def bundle(devices: Path) -> Bundle:
    return find_bundle("aarch64-linux")


@pytest.fixture
def desk(bundle: Bundle, emulate: Callable[[str], list[str]], tmp_path: Path) -> Desk:
    return Desk(tmp_path, bundle, tuple(emulate("max")))


def lowered(desk: Desk, name: str, lowering: Lowering) -> set[str]:
    """Write the file; the operators of it that are ours."""
    made = lower_graph(model(name), inputs(name, batch=1), lowering)
    path_of(desk, lowering).write_bytes(made.data)
    return {row.op.split(".")[1] for row in made.delegation if row.delegate == "edgeprune"}


def path_of(desk: Desk, lowering: Lowering) -> Path:
    return desk.folder / ("model.tflite" if lowering.runtime == "litert" else "model.pte")


def job(desk: Desk, name: str, lowering: Lowering, delegate: bool = True) -> Job:
    subject = desk.subject(path_of(desk, lowering).name, inputs(name, batch=1))
    return desk.job("run", subject, delegate=delegate)


def on_this_machine(desk: Desk, name: str, lowering: Lowering) -> NDArray[np.float32]:
    path = path_of(desk, lowering)
    with connect("local") as device, device.predictor(path) as predict:
        return predict(inputs(name, batch=1)).numpy()


@pytest.mark.parametrize(
    ("name", "case"),
    [
        each if each in BY_DAY else pytest.param(*each, marks=pytest.mark.nightly)
        for each in product(("vit", "torch_encoder"), CASES)
    ],
)
def test_a_lowered_file_gives_on_arm_what_it_gives_here(
    name: str, case: str, desk: Desk, emulate: Callable[[str], list[str]]
) -> None:
    lowering, tolerance = CASES[case]
    ours = lowered(desk, name, lowering)
    if lowering.runtime == "executorch":
        assert ours >= OURS
        assert ("linear_int8" in ours) == bool(lowering.isa)
    wanted = on_this_machine(desk, name, lowering)
    for cpu in PROCESSORS:
        there = Desk(desk.folder, desk.bundle, tuple(emulate(cpu)))
        got = there.output(job(there, name, lowering))
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max(), cpu


def test_an_fp16_file_gives_on_arm_what_it_gives_here_within_half_floats(
    desk: Desk, emulate: Callable[[str], list[str]]
) -> None:
    fp16 = Lowering("fp16")
    assert lowered(desk, "torch_encoder", fp16) >= OURS
    wanted = on_this_machine(desk, "torch_encoder", fp16)
    for cpu in PROCESSORS:
        there = Desk(desk.folder, desk.bundle, tuple(emulate(cpu)))
        got = there.output(job(there, "torch_encoder", fp16))
        assert np.abs(got - wanted).max() <= MAX_ERROR["fp16"] * np.abs(wanted).max(), cpu


def test_a_profile_on_arm_has_our_operators(desk: Desk) -> None:
    lowering = Lowering("int8", "litert")
    lowered(desk, "vit", lowering)
    (found,) = desk.answer(
        desk.job("profile", *job(desk, "vit", lowering).subjects, rounds=2)
    ).found
    assert found.operators is not None
    assert {"attention", "layer_norm"} <= {
        each.op for each in found.operators if each.delegate == "edgeprune"
    }


def test_without_our_library_a_file_says_what_it_lacks_and_needs_none_when_off(desk: Desk) -> None:
    int8, off = Lowering("int8"), Lowering("int8", delegate="off")
    lowered(desk, "vit", int8)
    ended = desk.run(job(desk, "vit", int8, delegate=False))
    assert ended.returncode == 1
    lacks = "Backend EdgepruneDelegate_of_libedgeprune_executorch_so is not registered"
    assert lacks in ended.stderr
    assert not lowered(desk, "vit", off)
    desk.answer(job(desk, "vit", off, delegate=False))


def test_a_damaged_region_is_an_error_on_arm(desk: Desk) -> None:
    lowering, _ = CASES["int8 with our linears"]
    lowered(desk, "vit", lowering)
    path = path_of(desk, lowering)
    data = path.read_bytes()
    start = data.index(b"EPRG")
    for place in (0, 4, 8, 60, 200, 900):
        damaged = bytearray(data)
        damaged[start + place : start + place + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(damaged)
        ended = desk.run(job(desk, "vit", lowering))
        assert ended.returncode == 1, f"at {place}: {ended.stderr}"
        assert "edgeprune: a region cannot be loaded" in ended.stderr
