"""The runner without Python finds what the Python runtimes find, and says what is wrong."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import inputs, model, noise
from numpy.typing import NDArray

from edgeprune.devices import connect
from edgeprune.devices.bundle import Bundle, find_bundle, read_bundle, write_bundle
from edgeprune.devices.runner import (
    ANSWER,
    RUNTIMES,
    Answer,
    Given,
    Job,
    Subject,
    job_text,
    read_answer,
)
from edgeprune.errors import InputError
from edgeprune.kernels import host_target
from edgeprune.lower import Lowering, lower_graph, lower_signatures
from edgeprune.program import capture

SUFFIXES = tuple(RUNTIMES)
NAME = "a vit: 100% – int8"
VNNI = ("avx512_vnni",)


class Desk(NamedTuple):
    """A folder with lowered files and a job."""

    folder: Path
    bundle: Bundle

    def subject(self, name: str, suffix: str, *, rows: int = 1, signature: str = "") -> Subject:
        given = []
        for number, value in enumerate(inputs("vit", batch=max(rows, 2))):
            file = f"input {number}"
            (self.folder / file).write_bytes(value[:rows].numpy().tobytes())
            given.append(Given("float32", file, (1, *value.shape[1:])))
        return Subject(name, f"model{suffix}", tuple(given), signature)

    def run(self, job: Job) -> subprocess.CompletedProcess[str]:
        (self.folder / ANSWER).unlink(missing_ok=True)
        (self.folder / "job").write_bytes(job_text(job))
        words = [str(self.bundle.program), str(self.folder / "job")]
        return subprocess.run(words, capture_output=True, text=True)

    def answer(self, job: Job) -> Answer:
        ended = self.run(job)
        assert ended.returncode == 0, ended.stderr
        return read_answer(self.folder / ANSWER)

    def job(self, kind: str, suffix: str, *subjects: Subject, **more: object) -> Job:
        runtime = RUNTIMES[suffix]
        libraries = tuple(map(str, self.bundle.loaded_for(runtime)))
        return Job(kind, runtime, subjects, libraries, **more)  # type: ignore[arg-type]

    def output(self, answer: Answer, number: int = 0) -> NDArray[np.float32]:
        spec = answer.found[0].outputs[number]
        data = np.frombuffer((self.folder / f"0.{number}").read_bytes(), spec.type)
        return data.reshape(answer.found[0].rows, *spec.shape[1:])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return find_bundle(host_target())


@pytest.fixture(scope="module")
def lowered() -> dict[str, bytes]:
    return {
        suffix: lower_graph(
            model("vit"), inputs("vit", batch=1), Lowering("int8", runtime, isa=VNNI)
        ).data
        for suffix, runtime in RUNTIMES.items()
    }


@pytest.fixture
def desk(bundle: Bundle, lowered: dict[str, bytes], tmp_path: Path) -> Desk:
    for suffix, data in lowered.items():
        (tmp_path / f"model{suffix}").write_bytes(data)
    return Desk(tmp_path, bundle)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_outputs_of_all_rows_are_those_of_the_python_runtime(desk: Desk, suffix: str) -> None:
    with connect("local") as device, device.predictor(desk.folder / f"model{suffix}") as predict:
        wanted = predict(tuple(value[:3] for value in inputs("vit", batch=3)))
    answer = desk.answer(desk.job("run", suffix, desk.subject("vit", suffix, rows=3)))
    assert answer.found[0].rows == 3
    np.testing.assert_allclose(desk.output(answer), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_two_files_are_timed_on_the_processor_that_was_asked_for(desk: Desk, suffix: str) -> None:
    (cpu, *_) = sorted(os.sched_getaffinity(0))
    subjects = (desk.subject(NAME, suffix), desk.subject("again", suffix))
    answer = desk.answer(desk.job("measure", suffix, *subjects, rounds=7, cpus=(cpu,)))
    assert (answer.affinity, answer.threads, answer.cooled_s) == ((cpu,), 1, 0)
    assert [found.name for found in answer.found] == [NAME, "again"]
    for found in answer.found:
        assert len(found.samples_ms) == 7 and min(found.samples_ms) > 0
        assert found.load_ms > 0 and found.first_run_ms > 0
        assert found.warmup_runs >= 10 and found.warmup_runs % 5 == 0
        assert found.operators is None and found.peak_memory_mb is None
    before, *_, after = (moment.at_s for moment in answer.moments)
    assert before < after


def test_timing_lasts_as_long_as_asked_and_looks_at_the_device_meanwhile(desk: Desk) -> None:
    job = desk.job("measure", ".pte", desk.subject("vit", ".pte"), rounds=1, seconds=1.2)
    answer = desk.answer(job)
    assert answer.moments[-1].at_s >= 1.2
    assert len(answer.moments) >= 4
    assert len(answer.found[0].samples_ms) > 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_profile_has_our_operators_and_those_of_xnnpack(desk: Desk, suffix: str) -> None:
    answer = desk.answer(desk.job("profile", suffix, desk.subject("vit", suffix), rounds=3))
    operators = answer.found[0].operators
    assert operators is not None
    calls = {(each.delegate, each.op): each.calls for each in operators}
    assert calls["edgeprune", "attention"] == 2
    assert calls["edgeprune", "layer_norm"] == 5
    assert calls["edgeprune", "linear"] == 12
    assert calls["xnnpack", "conv"] == 1
    assert not any(each.op.startswith("edgeprune") for each in operators)
    ours = sum(each.ms for each in operators if each.delegate == "edgeprune")
    assert 0 < ours < max(answer.found[0].samples_ms)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_counts_what_loading_and_running_take(desk: Desk, suffix: str) -> None:
    answer = desk.answer(desk.job("memory", suffix, desk.subject("vit", suffix)))
    weights_mb = (desk.folder / f"model{suffix}").stat().st_size / 2**20
    assert weights_mb < answer.found[0].peak_memory_mb < 100


def test_whole_numbers_are_narrowed_to_what_the_file_takes(bundle: Bundle, tmp_path: Path) -> None:
    batch = inputs("bert", batch=1)
    lowering = Lowering("fp32", "litert")
    (tmp_path / "model.tflite").write_bytes(lower_graph(model("bert"), batch, lowering).data)
    given = []
    for number, value in enumerate(batch):
        (tmp_path / str(number)).write_bytes(value.numpy().tobytes())
        given.append(Given(str(value.dtype).removeprefix("torch."), str(number), (*value.shape,)))
    assert given[0].type == "int64"
    with connect("local") as device, device.predictor(tmp_path / "model.tflite") as predict:
        wanted = predict(batch)
    desk = Desk(tmp_path, bundle)
    subject = Subject("bert", "model.tflite", tuple(given))
    answer = desk.answer(desk.job("run", ".tflite", subject))
    np.testing.assert_allclose(desk.output(answer), wanted, rtol=1e-5, atol=1e-5)
    (tmp_path / "0").write_bytes(torch.full_like(batch[0], 2**40).numpy().tobytes())
    ended = desk.run(desk.job("run", ".tflite", subject))
    assert "1099511627776 does not fit the model's int32" in ended.stderr.splitlines()[-1]


def test_a_signature_is_chosen_by_its_name(bundle: Bundle, tmp_path: Path) -> None:
    fused, batches = (
        model("fused"),
        {"long": noise(2, 12, 8, seed=1), "short": noise(2, 6, 8, seed=1)},
    )
    programs = {name: capture(fused, (batch,)) for name, batch in batches.items()}
    lower_signatures(programs, tmp_path / "model.tflite", Lowering("fp32", "litert"))
    desk = Desk(tmp_path, bundle)
    (tmp_path / "tokens").write_bytes(batches["short"][:1].numpy().tobytes())
    given = (Given("float32", "tokens", (1, 6, 8)),)
    answer = desk.answer(desk.job("run", ".tflite", Subject("x", "model.tflite", given, "short")))
    wanted = fused(batches["short"][:1]).detach()
    np.testing.assert_allclose(desk.output(answer), wanted, rtol=1e-4, atol=1e-4)
    ended = desk.run(desk.job("run", ".tflite", Subject("x", "model.tflite", given, "x y")))
    assert ended.stderr.splitlines()[-1].endswith("got signature 'x y', it has: long, short")


@pytest.mark.parametrize("kind", ["run", "profile"])
def test_tflite_s_own_interface_gives_the_same(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    package = importlib.util.find_spec("pymicro_wakeword")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no libtensorflowlite_c.so here: pip install pymicro-wakeword")
    library = Path(package.submodule_search_locations[0], "lib", "libtensorflowlite_c.so")
    batch, lowering = inputs("vit", batch=1), Lowering("int8", "litert", delegate="off")
    (tmp_path / "model.tflite").write_bytes(lower_graph(model("vit"), batch, lowering).data)
    desk = Desk(tmp_path, bundle)
    ours = bundle.loaded_for("litert")[-1]
    job = Job(
        kind,  # type: ignore[arg-type]
        "litert",
        (desk.subject("vit", ".tflite"),),
        (str(library), str(ours)),
        rounds=2,
    )
    answer = desk.answer(job)
    assert answer.runtime_version and answer.runtime_version.startswith("TFLite 2.")
    if kind == "profile":
        assert answer.found[0].operators is not None
        return
    with connect("local") as device, device.predictor(tmp_path / "model.tflite") as predict:
        wanted = predict(batch)
    np.testing.assert_allclose(desk.output(answer), wanted, rtol=2e-2, atol=2e-2)


def test_what_does_not_fit_is_named_and_no_answer_is_left(desk: Desk) -> None:
    fits = desk.subject("vit", ".pte")
    (desk.folder / "short").write_bytes(b"1234")
    whole = desk.job("run", ".pte", fits)

    def given(*files: str, kind: str = "float32") -> Job:
        inputs = tuple(Given(kind, file, (1,)) for file in files)
        return desk.job("run", ".pte", Subject("vit", "model.pte", inputs))

    for job, problem in (
        (given(), "takes 1 inputs, got 0"),
        (given("short"), "short: got 4 bytes, wanted 1024 or a multiple of it"),
        (given("absent"), "absent: No such file"),
        (given("input 0", kind="int64"), "input 0: got int64, the model takes float32"),
        (desk.job("run", ".pte", Subject("x", "short", ())), "short: Error::"),
        (desk.job("run", ".pte", desk.subject("x", ".pte", signature="s")), "has one method"),
        (desk.job("measure", ".pte", desk.subject("x", ".pte", rows=2)), "for 2 runs, wanted 1"),
        (desk.job("profile", ".pte", fits, fits), "takes one model, got 2"),
        (desk.job("sing", ".pte", fits), "there is no kind 'sing'"),
        (replace(whole, runtime="onnx"), "this runner has no 'onnx', it has: executorch, litert"),
        (replace(whole, libraries=("libnone.so",)), "libnone.so: cannot open shared object"),
        (replace(whole, cpus=(1023,)), "cpus: Invalid argument"),
        (replace(whole, runtime="litert", libraries=()), "none has LiteRT"),
    ):
        ended = desk.run(job)
        assert ended.returncode == 1, problem
        assert ended.stderr.splitlines()[-1].startswith("runner: ")
        assert problem in ended.stderr.splitlines()[-1]
        assert not (desk.folder / ANSWER).exists()


def test_a_job_ends_by_its_limit(desk: Desk) -> None:
    subject = desk.subject("vit", ".pte")
    ended = desk.run(desk.job("measure", ".pte", subject, seconds=600.0, limit_s=0.5))
    assert ended.returncode == 124
    assert "runner: limit" in ended.stderr
    assert not (desk.folder / ANSWER).exists()


def test_a_job_that_is_no_job_is_refused(desk: Desk) -> None:
    job = desk.folder / "job"
    for text, problem in (
        ("", "names no model"),
        ("rounds many\n", "'many' is no number"),
        ("turns 5\n", "there is no key 'turns'"),
        ("model a\n", "is not complete"),
    ):
        job.write_text(text)
        ended = subprocess.run([desk.bundle.program, job], capture_output=True, text=True)
        assert ended.returncode == 1 and problem in ended.stderr
    assert subprocess.run([desk.bundle.program], capture_output=True).returncode == 2


def test_an_answer_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ANSWER
    path.write_text('{"format": "edgeprune.answer", "version": 1, "kind": "run"}')
    with pytest.raises(InputError, match="not what the runner writes"):
        read_answer(path)


def test_a_bundle_runs_wherever_it_is_copied(desk: Desk, tmp_path: Path) -> None:
    copy = write_bundle(desk.bundle, tmp_path / "elsewhere")
    assert copy == read_bundle(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"has files of its own: mine\.txt"):
        write_bundle(desk.bundle, tmp_path / "elsewhere")
    moved = Desk(desk.folder, copy)
    assert moved.answer(moved.job("run", ".pte", moved.subject("vit", ".pte"))).found[0].rows == 1


def test_a_bundle_for_a_phone_needs_the_ndk() -> None:
    with pytest.raises(InputError, match="Android's NDK: docs/runner.md"):
        find_bundle("aarch64-android")
