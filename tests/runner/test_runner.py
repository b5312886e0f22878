"""The runner without Python finds what the Python runtimes find, and says what is wrong."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from desks import Desk
from models import inputs, model, noise
from native_programs import BACKENDS, host_compiler, linears_win
from numpy.typing import NDArray

from edgeprune.devices import connect
from edgeprune.devices.bundle import Bundle, find_bundle, read_bundle, write_bundle
from edgeprune.devices.runner import ANSWER, RUNTIMES, Given, Job, Subject, read_answer
from edgeprune.devices.wheels import LITERT, sdk
from edgeprune.errors import InputError
from edgeprune.kernels import TARGETS, host_target
from edgeprune.lower import Lowering, lower_graph, lower_signatures
from edgeprune.program import capture

# What the module makes once is made on one worker.
pytestmark = pytest.mark.xdist_group("runner")

SUFFIXES = tuple(RUNTIMES)
NAME = "a vit: 100% – int8"
VNNI = ("avx512_vnni",)


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


def vit(desk: Desk, suffix: str = ".pte", name: str = "vit", rows: int = 1, **more: str) -> Subject:
    pixels = inputs("vit", batch=rows)
    return desk.subject(f"model{suffix}", pixels, name, **more)


def by_python(path: Path, batch: Sequence[torch.Tensor]) -> NDArray[np.float32]:
    with connect("local") as device, device.predictor(path) as predict:
        return predict(tuple(batch)).numpy()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_outputs_of_all_rows_are_those_of_the_python_runtime(desk: Desk, suffix: str) -> None:
    wanted = by_python(desk.folder / f"model{suffix}", inputs("vit", batch=3))
    got = desk.output(desk.job("run", vit(desk, suffix, rows=3)))
    assert len(got) == 3
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_two_files_are_timed_on_the_processor_that_was_asked_for(desk: Desk, suffix: str) -> None:
    (cpu, *_) = sorted(os.sched_getaffinity(0))
    both = (vit(desk, suffix, NAME), vit(desk, suffix, "-"))
    answer = desk.answer(desk.job("measure", *both, rounds=7, cpus=(cpu,)))
    assert (answer.affinity, answer.threads, answer.cooled_s) == ((cpu,), 1, 0)
    assert [found.name for found in answer.found] == [NAME, "-"]
    for found in answer.found:
        assert len(found.samples_ms) == 7 and min(found.samples_ms) > 0
        assert found.load_ms > 0 and found.first_run_ms > 0
        assert found.warmup_runs >= 10 and found.warmup_runs % 5 == 0
        assert found.operators is None and found.peak_memory_mb is None
    before, *_, after = (moment.at_s for moment in answer.moments)
    assert before < after


def test_timing_lasts_as_long_as_asked_and_looks_at_the_device_meanwhile(desk: Desk) -> None:
    answer = desk.answer(desk.job("measure", vit(desk), rounds=1, seconds=1.2))
    assert answer.moments[-1].at_s >= 1.2
    assert len(answer.moments) >= 4
    assert len(answer.found[0].samples_ms) > 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_profile_has_our_operators_and_those_of_xnnpack(desk: Desk, suffix: str) -> None:
    (found,) = desk.answer(desk.job("profile", vit(desk, suffix), rounds=3)).found
    assert found.operators is not None
    calls = {(each.delegate, each.op): each.calls for each in found.operators}
    assert calls["edgeprune", "attention"] == 2
    assert calls["edgeprune", "layer_norm"] == 5
    # In a .pte they are in regions with their neighbours, whatever this machine has.
    theirs_or_ours = "edgeprune" if suffix == ".pte" or linears_win() else "xnnpack"
    assert calls[theirs_or_ours, "linear"] == 12
    assert calls["xnnpack", "conv"] == 1
    assert not any(each.op.startswith("edgeprune") for each in found.operators)
    ours = sum(each.ms for each in found.operators if each.delegate == "edgeprune")
    assert 0 < ours < max(found.samples_ms)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_counts_what_loading_and_running_take(desk: Desk, suffix: str) -> None:
    (found,) = desk.answer(desk.job("memory", vit(desk, suffix))).found
    assert found.peak_memory_mb is not None
    assert (desk.folder / f"model{suffix}").stat().st_size / 2**20 < found.peak_memory_mb < 100


@pytest.mark.nightly
def test_whole_numbers_are_narrowed_to_what_the_file_takes(bundle: Bundle, tmp_path: Path) -> None:
    batch, path = inputs("bert", batch=1), tmp_path / "model.tflite"
    path.write_bytes(lower_graph(model("bert"), batch, Lowering("fp32", "litert")).data)
    assert batch[0].dtype == torch.int64
    desk = Desk(tmp_path, bundle)
    job = desk.job("run", desk.subject(path.name, batch))
    np.testing.assert_allclose(desk.output(job), by_python(path, batch), rtol=1e-5, atol=1e-5)
    desk.subject(path.name, (torch.full_like(batch[0], 2**40),))
    ended = desk.run(job)
    assert "1099511627776 does not fit the model's int32" in ended.stderr.splitlines()[-1]


@pytest.mark.nightly
def test_a_signature_is_chosen_by_its_name(bundle: Bundle, tmp_path: Path) -> None:
    fused, path = model("fused"), tmp_path / "model.tflite"
    batches = {name: noise(2, size, 8, seed=1) for name, size in (("long", 12), ("short", 6))}
    programs = {name: capture(fused, (batch,)) for name, batch in batches.items()}
    lower_signatures(programs, path, Lowering("fp32", "litert"))
    desk, short = Desk(tmp_path, bundle), (batches["short"][:1],)
    got = desk.output(desk.job("run", desk.subject(path.name, short, signature="short")))
    np.testing.assert_allclose(got, fused(*short).detach(), rtol=1e-4, atol=1e-4)
    ended = desk.run(desk.job("run", desk.subject(path.name, short, signature="x y")))
    assert ended.stderr.splitlines()[-1].endswith("got signature 'x y', it has: long, short")


def test_tflite_s_own_interface_gives_the_same(bundle: Bundle, tmp_path: Path) -> None:
    package = importlib.util.find_spec("pymicro_wakeword")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no libtensorflowlite_c.so here: pip install pymicro-wakeword")
    library = Path(package.submodule_search_locations[0], "lib", "libtensorflowlite_c.so")
    batch, path = inputs("vit", batch=1), tmp_path / "model.tflite"
    # The composites of our delegate are newer than this library.
    lowering = Lowering("fp32", "litert", delegate="off")
    path.write_bytes(lower_graph(model("vit"), batch, lowering).data)
    desk = Desk(tmp_path, bundle)
    ours = bundle.loaded_for("litert")[-1]
    job = desk.job("run", desk.subject(path.name, batch))
    job = replace(job, libraries=(str(library), str(ours)))
    answer = desk.answer(job)
    assert answer.runtime_version and answer.runtime_version.startswith("TFLite 2.")
    np.testing.assert_allclose(desk.output(job), by_python(path, batch), rtol=1e-5, atol=1e-5)
    assert desk.answer(replace(job, kind="profile")).found[0].operators is not None


def test_what_does_not_fit_is_named_and_no_answer_is_left(desk: Desk) -> None:
    fits, whole = vit(desk), desk.job("run", vit(desk))
    (desk.folder / "short").write_bytes(b"1234")

    def given(*files: str, kind: str = "float32") -> Job:
        inputs = tuple(Given(kind, file, (1,)) for file in files)
        return desk.job("run", replace(fits, inputs=inputs))

    for job, problem in (
        (given(), "takes 1 inputs, got 0"),
        (given("short"), "short: got 4 bytes, wanted 1024 or a multiple of it"),
        (given("absent"), "absent: No such file"),
        (given("input 0", kind="int64"), "input 0: got int64, the model takes float32"),
        (replace(whole, subjects=(replace(fits, file="short"),)), "short: Error::"),
        (desk.job("run", vit(desk, signature="s")), "has one method"),
        (desk.job("profile", fits, fits), "takes one model, got 2"),
        (desk.job("sing", fits), "there is no kind 'sing'"),
        (replace(whole, runtime="onnx"), "this runner has no 'onnx', it has: executorch, litert"),
        (replace(whole, libraries=("libnone.so",)), "libnone.so: cannot open shared object"),
        (replace(whole, cpus=(1023,)), "cpus: Invalid argument"),
        (replace(whole, runtime="litert", libraries=()), "none has LiteRT"),
        (desk.job("measure", vit(desk, rows=2)), "for 2 runs, wanted 1"),
    ):
        ended = desk.run(job)
        assert ended.returncode == 1, problem
        assert ended.stderr.splitlines()[-1].startswith("runner: ")
        assert problem in ended.stderr.splitlines()[-1]
        assert not (desk.folder / ANSWER).exists()


def test_a_job_ends_by_its_limit(desk: Desk) -> None:
    ended = desk.run(desk.job("measure", vit(desk), seconds=600.0, limit_s=0.5))
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
    assert moved.answer(moved.job("run", vit(moved))).found[0].rows == 1


@pytest.mark.nightly
def test_a_bundle_for_a_phone_is_made_by_the_ndk(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The NDK cannot be had here: its compiler is zig's, for this machine."""
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"needs LiteRT's library: none was given"):
        find_bundle("aarch64-android")
    litert = desk.bundle.folder / LITERT
    with pytest.raises(InputError, match="ANDROID_NDK_HOME: it is not set"):
        find_bundle("aarch64-android", litert)
    compiler = tmp_path / "toolchains" / "llvm" / "prebuilt" / "here" / "bin" / "clang++"
    compiler.parent.mkdir(parents=True)
    triple = TARGETS[host_target()].triple
    compiler.write_text(
        "#!/bin/sh\n"
        "[ $1 = --target=aarch64-linux-android26 ] && shift\n"
        f'exec {sys.executable} -m ziglang c++ -target {triple} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    made = find_bundle("aarch64-android", litert)
    assert [path.name for path in made.loaded_for("litert")] == [LITERT, "libedgeprune_litert.so"]
    with pytest.raises(InputError, match="a bundle for litert, without executorch"):
        made.loaded_for("executorch")
    phone = Desk(desk.folder, made)
    phone.answer(phone.job("run", vit(phone, ".tflite"), delegate=False))


@pytest.mark.nightly
def test_cmake_builds_the_same_runner_for_one_s_own_compiler(desk: Desk, tmp_path: Path) -> None:
    if host_compiler() is None:
        pytest.skip("no C++ compiler for this machine: apt-get install g++")
    cmake, build = str(Path(sys.executable).parent / "cmake"), str(tmp_path / "build")
    config = f"-Dexecutorch_DIR={sdk('executorch', host_target())}/lib/cmake/executorch"
    for words in (("-S", str(BACKENDS / "runner"), "-B", build, config), ("--build", build)):
        subprocess.run([cmake, *words], check=True, capture_output=True)
    wanted = desk.output(desk.job("run", vit(desk)))
    with_program = [f"{build}/runner", str(desk.folder / "job")]
    (desk.folder / "0.0").unlink()
    subprocess.run(with_program, check=True, capture_output=True)
    got = np.frombuffer((desk.folder / "0.0").read_bytes(), np.float32).reshape(wanted.shape)
    assert (got == wanted).all()
