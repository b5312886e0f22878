"""This machine as a device."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from edgeprune.devices import protocol
from edgeprune.devices.device import (
    Device,
    OperatorTime,
    Workload,
    register_device,
    slowest_first,
)
from edgeprune.devices.measurement import DeviceState, Measurement, Moment
from edgeprune.devices.process import WorkerProcess
from edgeprune.devices.runtimes import runtime_of
from edgeprune.devices.state import capacities, local_state, temperature_c
from edgeprune.errors import InputError
from edgeprune.task import Batch, Predict, batches

JOB_LIMIT_S = 1800.0
# Handed to the worker at a time: 500 photographs at once are more than a container's /dev/shm.
ROWS = 32
MB = 2**20


class LocalDevice(Device):
    """This machine, with the runtime in worker processes pinned to ``affinity``."""

    name = "local"
    gate_c = protocol.DIE_GATE_C

    def __init__(self, threads: int, cpu: int | None) -> None:
        self.threads = threads
        self.affinity = _processors(threads, cpu)
        self._open = ExitStack()

    def __enter__(self) -> LocalDevice:
        if self.runner is not None:
            raise InputError(
                f"{self.name}: got runner {self.runner}, but files are run in Python here. Name a "
                "device that is reached by adb or ssh."
            )
        self._folder = Path(self._open.enter_context(_scratch()))
        self._numbers = count()
        return self

    def __exit__(self, *reason: object) -> None:
        self._open.close()

    def measure_in_turns(
        self,
        workloads: Sequence[Workload],
        rounds: int = protocol.RUNS,
        memory: bool = False,
        seconds: float = protocol.LEAST_S,
    ) -> dict[str, Measurement]:
        """See ``Device.measure_in_turns``.

        Raises:
            InputError: a file is missing or the runtime cannot load it.
        """
        with self._described(*workloads) as described, self._worker() as worker:
            jobs = [
                {"name": load.name, **each} for load, each in zip(workloads, described, strict=True)
            ]
            if self.gate_c is not None:
                protocol.cool_down(temperature_c, self.gate_c)
            state = self.state()
            answer = worker.ask(
                "measure", JOB_LIMIT_S + seconds, workloads=jobs, rounds=rounds, seconds=seconds
            )
        moments = tuple(Moment(**each) for each in answer["moments"])
        state = replace(state, moments=moments, gate_c=self.gate_c)
        return {load.name: self._found(load, answer, state, memory) for load in workloads}

    def _found(
        self, load: Workload, answer: dict[str, Any], state: DeviceState, memory: bool
    ) -> Measurement:
        timed = answer["files"][load.name]
        return Measurement(
            name=load.name,
            samples_ms=tuple(timed["samples_ms"]),
            first_run_ms=timed["first_run_ms"],
            warmup_runs=timed["warmup_runs"],
            load_ms=timed["load_ms"],
            peak_memory_mb=self.peak_memory_mb(load) if memory else None,
            file_size_mb=load.path.stat().st_size / MB,
            state=state,
        )

    def peak_memory_mb(self, workload: Workload) -> float:
        """Growth of a fresh process's resident set through loading and three runs."""
        with self._described(workload) as (described,), self._worker() as worker:
            answer = worker.ask("memory", JOB_LIMIT_S, **described)
        return float(answer["peak_memory_mb"])

    def predictor(self, path: Path, signature: str = "") -> AbstractContextManager[Predict]:
        """See ``Device.predictor``.

        Raises:
            InputError: the file is missing or the runtime cannot load it.
        """
        return self._predictor(_existing(path), signature)

    @contextmanager
    def _predictor(self, path: Path, signature: str) -> Iterator[Predict]:
        with self._worker() as worker:
            worker.ask("load", JOB_LIMIT_S, name="predict", path=str(path), signature=signature)

            def predict(batch: Batch) -> torch.Tensor | Batch:
                parts = [self._run(worker, part) for part in batches(batch, ROWS)]
                outputs = tuple(torch.cat(column) for column in zip(*parts, strict=True))
                return outputs[0] if len(outputs) == 1 else outputs

            yield predict

    def _run(self, worker: WorkerProcess, batch: Batch) -> Batch:
        """Through files in memory: one round trip for all rows, not one for each."""
        number = next(self._numbers)
        paths = [self._folder / f"{number}-in{i}.npy" for i in range(len(batch))]
        for path, column in zip(paths, batch, strict=True):
            with _writing(path):
                np.save(path, column.detach().contiguous().numpy())
        pattern = self._folder / f"{number}-out{{i}}.npy"
        answer = worker.ask(
            "run",
            JOB_LIMIT_S,
            name="predict",
            inputs=[str(path) for path in paths],
            outputs=str(pattern),
        )
        results = [Path(str(pattern).format(i=i)) for i in range(answer["count"])]
        outputs = tuple(torch.from_numpy(np.load(path)) for path in results)
        for path in (*paths, *results):
            path.unlink()
        return outputs

    def profile(
        self, workloads: Sequence[Workload], runs: int = 10
    ) -> dict[str, tuple[OperatorTime, ...]]:
        """See ``Device.profile``."""
        # One worker for all: what reads ExecuTorch's traces takes 8 s to import.
        with self._described(*workloads) as described, self._worker() as worker:
            answers = [
                worker.ask("profile", JOB_LIMIT_S, **each, runs=runs)["events"]
                for each in described
            ]
        return {
            load.name: slowest_first(OperatorTime(**event) for event in events)
            for load, events in zip(workloads, answers, strict=True)
        }

    def state(self) -> DeviceState:
        """See ``Device.state``."""
        return local_state(self.affinity, self.threads)

    def _worker(self) -> WorkerProcess:
        return WorkerProcess(self.affinity, self.threads)

    @contextmanager
    def _described(self, *workloads: Workload) -> Iterator[list[dict[str, str]]]:
        """Files and inputs as the worker is told of them; the inputs are gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            told = []
            for number, load in enumerate(workloads):
                file = Path(folder, f"{number}.npz")
                arrays = {f"{i:03d}": value.numpy() for i, value in enumerate(load.inputs)}
                with _writing(file):
                    np.savez(file, **arrays)  # type: ignore[arg-type]
                path = str(_existing(load.path))
                told.append({"path": path, "inputs": str(file), "signature": load.signature})
            yield told


@register_device("local")
def open_local(address: str, threads: int, cpu: int | None) -> Device:
    """This machine; it takes no address.

    Raises:
        InputError: an address was given, or more threads than processors.
    """
    if address:
        raise InputError(f"got device 'local:{address}', wanted 'local' without an address")
    return LocalDevice(threads, cpu)


def _processors(threads: int, cpu: int | None) -> tuple[int, ...]:
    if not hasattr(os, "sched_getaffinity"):
        raise InputError(
            "device local: this system cannot keep a process on one processor, as Linux can, so "
            "what is measured here would not repeat. Build for another device's profile."
        )
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise InputError(f"got {threads} threads, wanted 1 to {len(allowed)} on this machine")
    if cpu is None:
        return protocol.processors(capacities(allowed), threads)
    if cpu not in allowed or allowed.index(cpu) + threads > len(allowed):
        raise InputError(f"got {threads} threads from processor {cpu}, this process has {allowed}")
    return tuple(allowed[allowed.index(cpu) :][:threads])


@contextmanager
def _scratch() -> Iterator[str]:
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for left in parent.glob("edgeprune-*-*"):
        process = left.name.split("-")[1]
        if process.isdigit() and not psutil.pid_exists(int(process)):  # it was killed
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"edgeprune-{os.getpid()}-", dir=parent) as folder:
        yield folder


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot write the runtime's inputs here ({error.strerror or error}). "
            "Free some space."
        ) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file. Lower the program first.")
    runtime_of(str(path))
    return path.resolve()
