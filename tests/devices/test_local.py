"""The local device runs, times and weighs lowered files, and survives bad ones."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from small_models import WIDTH, Attention, workers
from torch import Tensor, nn

from edgeprune.devices import (
    LocalDevice,
    Moment,
    Workload,
    connect,
    local,
    read_measurement,
    worker,
    write_measurement,
)
from edgeprune.devices.process import WorkerProcess
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.lower import Lowering, lower_graph

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("local")


@pytest.fixture(scope="module")
def workload(files: dict[str, Workload]) -> Workload:
    return replace(files["executorch"], name="model")


def test_predictions_equal_the_module_row_by_row(model: nn.Module, workload: Workload) -> None:
    before, batch = workers(), torch.randn(33, WIDTH)
    with connect("local") as device, device.predictor(workload.path) as predict:
        for rows in (batch, batch[:1], batch[5:]):
            got = predict((rows,))
            assert isinstance(got, Tensor)
            torch.testing.assert_close(got, model(rows), atol=1e-5, rtol=1e-5)
    assert workers() == before


def test_the_rows_of_a_batch_are_one_round_trip(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = WorkerProcess.ask

    def noted(self: WorkerProcess, word: str, *rest: Any, **more: Any) -> Any:
        asked.append(word)
        return ask(self, word, *rest, **more)

    monkeypatch.setattr(WorkerProcess, "ask", noted)
    with connect("local") as device, device.predictor(workload.path) as predict:
        predict((torch.randn(local.ROWS, WIDTH),))
    assert asked == ["load", "run"]


def test_a_model_with_two_outputs_predicts_both(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + y, x * y

    path, x, y = tmp_path / "two.pte", torch.randn(3, 4), torch.randn(3, 4)
    path.write_bytes(lower_graph(Two(), (x[:1], y[:1]), Lowering()).data)
    with connect("local") as device, device.predictor(path) as predict:
        added, multiplied = predict((x, y))
    torch.testing.assert_close(added, x + y)
    torch.testing.assert_close(multiplied, x * y)


def test_measurements_carry_samples_memory_size_and_state(workload: Workload) -> None:
    twin = Workload("twin", workload.path, workload.inputs)
    with connect("local", threads=1) as device:
        found = device.measure_in_turns([workload, twin], rounds=12, memory=True, seconds=0)
    measured = found["model"]
    assert set(found) == {"model", "twin"}
    assert len(measured.samples_ms) == 12
    assert 0 < measured.min_ms <= measured.p50_ms <= measured.p90_ms
    assert measured.min_ms <= measured.trimmed_mean_ms <= max(measured.samples_ms)
    assert measured.first_run_ms > 0
    assert measured.load_ms > 0
    assert measured.peak_memory_mb is not None
    assert 0.2 < measured.peak_memory_mb < 60
    assert measured.file_size_mb == pytest.approx(workload.path.stat().st_size / 2**20)
    assert measured.max_ms == max(measured.samples_ms) and measured.warmup_runs >= 10
    before, after = measured.state.moments
    assert 0 <= before.at_s < after.at_s
    assert len(measured.state.affinity) == measured.state.threads == 1
    assert measured.state.cpu_model
    assert measured.state.versions["executorch"]


def test_one_file_is_measured_by_its_path_with_a_batch_of_any_size(workload: Workload) -> None:
    batch = (torch.randn(3, WIDTH),)
    with connect("local", gate_c=1000.0) as device:
        measured = device.measure(workload.path, batch, runs=7, seconds=0)
        longer = device.measure(str(workload.path), batch, runs=1, seconds=0.2)
    assert measured.name == "model.pte" and len(measured.samples_ms) == 7
    assert measured.peak_memory_mb is None and measured.state.gate_c == 1000.0
    assert len(longer.samples_ms) > 1 and sum(longer.samples_ms) < 2e3


def test_a_device_that_throttles_heats_or_is_emulated_is_flagged(workload: Workload) -> None:
    with connect("local") as device:
        measured = device.measure(workload.path, workload.inputs, runs=7, seconds=0)
    course = (Moment(0.0, 3000.0, 70.0), Moment(1.0, 2000.0, 80.0))
    emulated = {"emulated": "by qemu"}
    state = replace(measured.state, moments=course, gate_c=60.0, facts=emulated)
    flags = replace(measured, samples_ms=(1.0,) * 7, state=state).flags
    assert [flag.partition(":")[0] for flag in flags] == ["throttled", "hot", "emulated"]


@pytest.mark.nightly
def test_inputs_do_not_pile_up(workload: Workload) -> None:
    with connect("local") as device:
        assert isinstance(device, LocalDevice)
        device.measure_in_turns([workload], rounds=2, memory=True)
        device.profile([workload])
        with device.predictor(workload.path) as predict:
            predict(workload.inputs)
        assert list(device._folder.iterdir()) == []


def test_measurement_json_reads_back_as_it_was(workload: Workload, tmp_path: Path) -> None:
    with connect("local") as device:
        measured = device.measure_in_turns([workload], rounds=10)["model"]
    path = write_measurement(tmp_path / "measurement.json", measured)
    assert read_measurement(path) == measured
    path.write_text(path.read_text().replace('"first_run_ms"', '"other"'))
    with pytest.raises(InputError, match="not a measurement"):
        read_measurement(path)


def test_the_worker_is_pinned_before_the_runtime_starts(workload: Workload) -> None:
    cpu = min(os.sched_getaffinity(0))
    with connect("local", cpu=cpu) as device:
        assert isinstance(device, LocalDevice)
        with WorkerProcess(device.affinity, 1) as worker:
            worker.ask("load", 60.0, name="model", path=str(workload.path))
            threads = psutil.Process(worker._process.pid).threads()
            assert all(os.sched_getaffinity(thread.id) == {cpu} for thread in threads)


def test_a_profile_names_operators_and_who_ran_them(workload: Workload) -> None:
    with connect("local") as device:
        rows = device.profile([workload], runs=3)[workload.name]
    ran = {(row.op, row.delegate) for row in rows}
    assert {("linear", "xnnpack"), ("layer_norm", "cpu"), ("gelu", "xnnpack")} <= ran
    assert [row.ms for row in rows] == sorted((row.ms for row in rows), reverse=True)
    assert all(row.calls == 1 for row in rows if row.op in ("linear", "layer_norm", "gelu"))


@pytest.mark.parametrize(
    "size", [1000, *(pytest.param(each, marks=pytest.mark.nightly) for each in (0, 10, -1))]
)
def test_a_file_cut_short_is_refused(workload: Workload, tmp_path: Path, size: int) -> None:
    before = workers()
    path = tmp_path / "cut.pte"
    path.write_bytes(workload.path.read_bytes()[:size])
    with connect("local") as device, pytest.raises(InputError, match="could not load it"):
        device.measure_in_turns([Workload("cut", path, workload.inputs)])
    assert workers() == before


def test_a_file_that_kills_the_runtime_kills_only_the_worker(
    workload: Workload, tmp_path: Path
) -> None:
    data = np.frombuffer(workload.path.read_bytes(), np.uint8).copy()
    data[64 : len(data) // 2] = 0xFF
    path = tmp_path / "broken.pte"
    path.write_bytes(data.tobytes())
    with connect("local") as device, pytest.raises(InputError, match="could not load it"):
        device.measure_in_turns([Workload("broken", path, workload.inputs)])


def test_a_missing_file_is_named(workload: Workload, tmp_path: Path) -> None:
    with connect("local") as device, pytest.raises(InputError, match=r"gone\.pte: no such file"):
        device.measure_in_turns([Workload("gone", tmp_path / "gone.pte", workload.inputs)])


def test_wrong_inputs_fail_with_the_runtimes_reason(workload: Workload) -> None:
    wrong = Workload("wrong", workload.path, (torch.randn(1, WIDTH + 1),))
    with (
        connect("local") as device,
        pytest.raises(EdgepruneError, match="measure failed") as caught,
    ):
        device.measure_in_turns([wrong])
    assert caught.value.detail


def test_a_job_that_takes_too_long_is_stopped(workload: Workload, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, *(value.numpy() for value in workload.inputs))
    job = [{"name": "long", "path": str(workload.path), "inputs": str(inputs)}]
    with WorkerProcess((min(os.sched_getaffinity(0)),), 1) as worker:
        with pytest.raises(EdgepruneError, match="did not finish within 1 s"):
            worker.ask("measure", 1.0, workloads=job, rounds=10**9, seconds=0)
        assert not psutil.pid_exists(worker._process.pid)


def test_ctrl_c_leaves_no_worker_behind(workload: Workload) -> None:
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from edgeprune.devices import Workload, connect\n"
        f"load = Workload('x', Path({str(workload.path)!r}), (torch.randn(1, {WIDTH}),))\n"
        "with connect('local') as device, device.predictor(load.path) as predict:\n"
        "    print('running', flush=True)\n"
        "    device.measure_in_turns([load], rounds=10**9)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"running\n"
        children = _await_children(parent.pid, 2)
        parent.send_signal(signal.SIGINT)
        parent.wait(20)
        gone, alive = psutil.wait_procs(children, timeout=10)
        assert (len(gone), alive) == (2, [])
    finally:
        parent.kill()


def _await_children(pid: int, count: int) -> list[psutil.Process]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        children = psutil.Process(pid).children()
        if len(children) == count:
            return children
        time.sleep(0.05)
    raise AssertionError(f"wanted {count} workers")


def test_an_unknown_device_lists_what_exists() -> None:
    with pytest.raises(InputError, match=r"device 'telnet': unknown; there are: .*local"):
        connect("telnet:x")
    with pytest.raises(InputError, match="without an address"):
        connect("local:here")


def test_more_threads_than_processors_are_refused() -> None:
    with pytest.raises(InputError, match="threads, wanted 1 to"):
        connect("local", threads=4096)


def test_workloads_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noted:
        """A runtime that does nothing but note what ran."""

        def prepare(self, path: str, signature: str) -> Callable[[], Noted]:
            self.path = path
            return lambda: self

        def bind(self, inputs: list[Any]) -> Callable[[], None]:
            return partial(ran.append, self.path)

    ran: list[str] = []
    monkeypatch.setattr(worker.Worker, "_runtime", lambda self, path: Noted())
    monkeypatch.setattr(worker, "_inputs", lambda path: [])
    loads = [{"name": name, "path": name, "inputs": ""} for name in "AB"]
    timed = worker.Worker(io.StringIO(), 1).measure(loads, rounds=4, seconds=0)["files"]
    assert ran[-8:] == list("ABABABAB")
    assert all(len(timed[name]["samples_ms"]) == 4 for name in "AB")


# A line for each look at the clock or at memory: whether our library was there by then.
LOOKS = """
import io, sys
from types import SimpleNamespace
from edgeprune.devices import worker

def look(*key):
    with open("/proc/self/maps") as maps:
        print("libedgeprune_" in maps.read(), file=sys.stderr)
    return 0

worker.time, worker._status_kb = SimpleNamespace(perf_counter=look), look
getattr(worker.Worker(io.StringIO(), 1), sys.argv[1])(*sys.argv[2:])
"""


@pytest.mark.parametrize(
    "runtime", ["executorch", pytest.param("litert", marks=pytest.mark.nightly)]
)
def test_our_library_is_neither_timed_nor_weighed_with_the_first_file(
    runtime: str, tmp_path: Path
) -> None:
    how, x = Lowering(runtime=runtime), torch.randn(1, 6, 16)
    path, inputs = tmp_path / f"model{how.suffix}", tmp_path / "inputs.npz"
    path.write_bytes(lower_graph(Attention().eval(), (x,), how).data)
    np.savez(inputs, x.numpy())
    for job in (("load", "model", path), ("memory", path, inputs)):
        ended = subprocess.run(
            [sys.executable, "-c", LOOKS, *map(str, job)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        looks = [line for line in ended.stderr.splitlines() if line in ("True", "False")]
        assert ended.returncode == 0, ended.stderr
        assert len(looks) >= 2 and set(looks) == {"True"}


def test_a_large_batch_is_handed_over_in_parts(
    model: nn.Module, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ROWS", 3)
    rows = torch.randn(8, WIDTH)
    with connect("local") as device, device.predictor(workload.path) as predict:
        answer = predict((rows,))
    assert isinstance(answer, Tensor)
    torch.testing.assert_close(answer, model(rows), atol=1e-5, rtol=1e-5)


def test_what_a_killed_process_left_in_memory_is_swept_up() -> None:
    memory = os.access("/dev/shm", os.W_OK)
    scratch = Path("/dev/shm" if memory else tempfile.gettempdir())
    gone, ours = (scratch / f"edgeprune-{pid}-left" for pid in (2**22 + 1, os.getpid()))
    try:
        for folder in (gone, ours):
            folder.mkdir()
        with connect("local"):
            assert not gone.exists() and ours.exists()
    finally:
        ours.rmdir()
