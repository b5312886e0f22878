"""A lowered file is proved: what it computes, what it costs, how good it is; or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from signs import Signs, changed

from edgeprune.budget import AbsoluteBudget
from edgeprune.devices import Device, read_measurement
from edgeprune.errors import InputError
from edgeprune.lower import Artifact, DelegationRow, Lowering
from edgeprune.program import Program
from edgeprune.task import Predict, Score
from edgeprune.validate import Predicted, Reference, Timing, Verdict, validate

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("validate")

FREE = AbsoluteBudget(1e6, 1e6, 1e6, None, 50)
Prove = Callable[..., Verdict]


@pytest.fixture
def prove(
    short: Program,
    short_file: Artifact,
    reference: Reference,
    task: Signs,
    device: Device,
    timing: Timing,
) -> Prove:
    """``validate`` on the encoder of one layer, measured once, in a budget that binds nothing."""

    def run(**other: Any) -> Verdict:
        usual = {"artifact": short_file, "device": device, "bounds": FREE, "recovered": short}
        return validate(**usual | {"dense": reference, "task": task, "timing": timing} | other)

    return run


def test_a_faster_file_within_budget_meets_it(prove: Prove, short_file: Artifact) -> None:
    verdict = prove(timing=None)
    assert (verdict.status, verdict.exit_code, verdict.reason) == ("met", 0, "")
    assert verdict.scores is not None and verdict.scores.dense == 1.0
    assert verdict.scores.file == pytest.approx(verdict.scores.recovered, abs=0.01)
    assert verdict.scores.interval is not None and verdict.scores.examples == 40
    assert verdict.scores.interval[0] < verdict.scores.difference < verdict.scores.interval[1]
    assert verdict.timing is not None and verdict.timing.pruned.peak_memory_mb is not None
    assert verdict.check("size_mb").got == pytest.approx(short_file.size_bytes / 1e6)


def test_a_verdict_survives_its_file(prove: Prove, timing: Timing, tmp_path: Path) -> None:
    verdict = prove(predicted=Predicted(1.0, 2.0, estimated=False))
    assert Verdict.read(verdict.write(tmp_path)) == verdict
    assert read_measurement(tmp_path / "measurement.json") == timing.pruned


@pytest.mark.parametrize(
    ("bounds", "status", "code", "failed"),
    [
        (replace(FREE, latency_ms=1e-6), "over_budget", 4, "latency_ms"),
        (replace(FREE, peak_memory_mb=1e-6), "over_budget", 4, "peak_memory_mb"),
        pytest.param(
            *(replace(FREE, size_mb=1e-6), "over_budget", 4, "size_mb"), marks=pytest.mark.nightly
        ),
        (replace(FREE, min_score=0.9999), "below_score", 5, "score_floor"),
        (replace(FREE, min_score=0.9999, latency_ms=1e-6), "over_budget", 4, "score_floor"),
    ],
)
def test_a_broken_bound_is_named_with_its_numbers(
    bounds: AbsoluteBudget, status: str, code: int, failed: str, prove: Prove
) -> None:
    verdict = prove(bounds=bounds)
    assert (verdict.status, verdict.exit_code) == (status, code)
    assert verdict.check(failed).passed is False and failed in verdict.reason


@pytest.mark.parametrize(("lost", "kept"), [(0.009, True), (0.011, False)])
def test_a_file_may_score_one_point_below_the_program_it_was_lowered_from(
    lost: float, kept: bool, prove: Prove
) -> None:
    class Lossy(Signs):
        reads = 0

        def evaluate(self, predict: Predict) -> Score:
            """The model read first is the file."""
            super().evaluate(predict)
            self.reads += 1
            return 0.9 - lost if self.reads == 1 else 0.9

    verdict = prove(task=Lossy())
    assert verdict.check("score_kept").passed is kept
    assert (verdict.status == "wrong_numerics") is not kept


def test_an_emulators_times_neither_pass_nor_fail(prove: Prove, timing: Timing) -> None:
    emulated = replace(timing.pruned.state, facts={"emulated": "by qemu"})
    pretended = Timing(*(replace(each, state=emulated) for each in (timing.pruned, timing.dense)))
    for latency_ms in (1e-6, 1e6):
        bounds = replace(FREE, latency_ms=latency_ms, peak_memory_mb=1e-6)
        verdict = prove(bounds=bounds, timing=pretended)
        assert (verdict.status, verdict.exit_code) == ("not_measured", 6)
        for name in ("latency_ms", "peak_memory_mb", "faster_than_dense"):
            assert verdict.check(name).passed is None
        assert verdict.check("latency_ms").note == "emulated: not a latency"
    assert verdict.check("numerics").passed


def test_what_speaks_against_a_time_stands_beside_it(prove: Prove, timing: Timing) -> None:
    restless = timing.pruned.samples_ms[:20] + tuple(2 * ms for ms in timing.pruned.samples_ms[:20])
    dense = replace(timing.dense, samples_ms=timing.dense.samples_ms[:40])
    noisy = Timing(replace(timing.pruned, samples_ms=restless), dense)
    verdict = prove(timing=noisy)
    assert "measured; noisy: p10 to p90 span" in verdict.check("latency_ms").note
    assert verdict.to_json()["timing"]["flags"][0].startswith("noisy")


@pytest.mark.nightly
def test_a_file_slower_than_dense_is_refused(
    prove: Prove, dense: Program, dense_file: Artifact, short: Program, short_file: Artifact
) -> None:
    other = Reference(short, short_file)
    verdict = prove(artifact=dense_file, recovered=dense, dense=other, timing=None)
    assert (verdict.status, verdict.exit_code) == ("not_faster", 1)
    assert "faster_than_dense" in verdict.reason


def test_wrong_numbers_outweigh_everything_else(prove: Prove, short: Program) -> None:
    wrong = changed(short, "weight", 0.05)
    verdict = prove(bounds=replace(FREE, latency_ms=1e-6), recovered=wrong)
    assert (verdict.status, verdict.exit_code) == ("wrong_numerics", 1)


def test_without_a_device_nothing_is_called_measured(prove: Prove) -> None:
    verdict = prove(device=None, timing=None, predicted=Predicted(3.5, 9.0, estimated=True))
    assert (verdict.status, verdict.exit_code) == ("not_measured", 6)
    latency = verdict.check("latency_ms")
    assert (latency.passed, latency.got) == (None, 3.5)
    assert "estimated, not measured" in latency.note
    assert verdict.timing is verdict.numerics is verdict.scores is None


@pytest.mark.nightly
def test_without_a_device_a_runtime_at_hand_still_checks_the_numbers(
    prove: Prove, short: Program, device: Device
) -> None:
    honest, wrong = (
        prove(device=None, timing=None, recovered=program, runtime=device)
        for program in (short, changed(short, "weight", 0.05))
    )
    assert honest.status == "not_measured" and honest.check("numerics").passed
    assert wrong.status == "wrong_numerics"


def test_what_falls_back_from_an_accelerator_in_silence_is_refused_aloud(
    prove: Prove, short_file: Artifact
) -> None:
    fallen = DelegationRow("conv_3", "tfl.conv_2d", "fallback", "", "Unsupported stride", "0.2")
    lowering = Lowering("fp16").asked(accelerator="vulkan")
    file = replace(short_file, lowering=lowering)
    verdicts = [
        prove(artifact=replace(file, delegation=rows), device=None, timing=None)
        for rows in ((fallen,), ())
    ]
    assert [each.status for each in verdicts] == ["fell_back", "not_measured"]
    assert verdicts[0].exit_code == 1 and "conv_3: Unsupported stride" in verdicts[0].reason


def test_an_accelerators_compilers_estimate_is_called_one(prove: Prove) -> None:
    predicted = Predicted(3.5, 9.0, estimated=True, vendor=True)
    note = prove(device=None, timing=None, predicted=predicted).check("latency_ms").note
    assert "vendor-estimated, not measured" in note


def test_a_file_cut_short_is_named(
    prove: Prove, short_file: Artifact, timing: Timing, tmp_path: Path
) -> None:
    path = tmp_path / "cut.pte"
    path.write_bytes(short_file.path.read_bytes()[:3000])
    for known in (None, timing):
        with pytest.raises(InputError, match=r"cut\.pte"):
            prove(artifact=replace(short_file, path=path), timing=known)
