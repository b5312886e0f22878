"""Cuts of the stream's width, the vocabulary and a table's rank, lowered and run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from axis_models import given, sites
from models import relative_error

from edgeprune.devices import connect
from edgeprune.lower import lower
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan
from edgeprune.surgery import apply

NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("rms", "executorch"),
        pytest.param("rms", "litert", marks=NIGHTLY),
        pytest.param("bert", "executorch", marks=NIGHTLY),
        pytest.param("bert", "litert", marks=NIGHTLY),
    ],
)
def test_a_lowered_file_computes_what_the_cut_program_does(
    name: str, runtime: str, tmp_path: Path
) -> None:
    found = sites(name)
    kept = {"d_model": tuple(range(1, 25))}
    kept |= {s.name: tuple(range(0, 50, 2)) for s in found.sites if s.axis == "vocabulary"}
    ranks = {s.name: 7 for s in found.sites if s.axis == "rank"}
    slim = apply(found.program, Plan(found.program.fingerprint, kept, rank=ranks), found)
    one = tuple(x[:1] for x in given(name, seed=3))
    lowering = Lowering("fp32", runtime)
    artifact = lower(slim, tmp_path / f"slim{lowering.suffix}", lowering)
    with connect("local") as device, device.predictor(artifact.path) as predict:
        got = predict(one)
    assert relative_error(torch.as_tensor(got), slim(*one)) <= 1e-5
