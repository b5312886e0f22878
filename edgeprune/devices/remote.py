"""A device at the other end of a connection: the native runner in its work folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from edgeprune import __version__, console
from edgeprune.devices import protocol
from edgeprune.devices.bundle import Bundle, find_bundle
from edgeprune.devices.device import (
    Device,
    OperatorTime,
    Workload,
    register_device,
    slowest_first,
)
from edgeprune.devices.facts import Facts, facts_of
from edgeprune.devices.folder import WAIT_S, Folder
from edgeprune.devices.keeper import MISSING
from edgeprune.devices.measurement import DeviceState, Measurement
from edgeprune.devices.runner import (
    ANSWER,
    RUNTIMES,
    Answer,
    Found,
    Given,
    Job,
    Kind,
    Subject,
    job_text,
    read_answer,
)
from edgeprune.devices.runtimes import runtime_of
from edgeprune.devices.transport import Transport
from edgeprune.devices.vendor_runners import vendor_answer, vendor_runner
from edgeprune.errors import DeviceError, InputError
from edgeprune.files import content_hash, sha256_of
from edgeprune.kernels.build import build_library
from edgeprune.kernels.libraries import LIBRARIES
from edgeprune.kernels.load import has_composites, needs_library
from edgeprune.task import Batch, Predict, batches

JOB_LIMIT_S = 1800.0
# The runner says itself that time is over; the keeper need not kill it.
GRACE_S = 15.0
# Of inputs, copied to the device at a time.
MOST_BYTES = 64 << 20
# Of an emulated processor no time counts; a run may take half a minute.
EMULATED_RUNS = 3
MB = 2**20
FIXED_PERFORMANCE = ("cmd", "power", "set-fixed-performance-mode-enabled")

Open: TypeAlias = Callable[[], Transport]


class RemoteDevice(Device):
    """Another machine, with the runner in its work folder.

    Args:
        name: as given to ``connect``.
        open_transport: is called when the ``with`` block is entered.
        threads, cpu: as of ``connect``.
        wait_s: how long to wait while somebody else measures there.
    """

    def __init__(
        self, name: str, open_transport: Open, threads: int, cpu: int | None, wait_s: float = WAIT_S
    ) -> None:
        self.name = name
        self.threads = threads
        self.open_transport, self._cpu, self._wait_s = open_transport, cpu, wait_s
        self._bundle: Bundle | None = None

    def __enter__(self) -> RemoteDevice:
        with ExitStack() as opened:
            self._transport = opened.enter_context(self.open_transport())
            self._folder = opened.enter_context(Folder(self._transport, self._wait_s))
            self.name = self._transport.name
            self._scratch = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            self.facts = self._look()
            self.title = self.facts.title
            self.affinity = _processors(self.facts, self.threads, self._cpu)
            self._settings: dict[str, str] = {}
            if self._transport.target.endswith("-android"):
                self._fix_performance()
            elif "gate_c" not in vars(self):  # nobody asked for another
                self.gate_c = protocol.DIE_GATE_C
            self._numbers = count()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        self._opened.close()

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
            DeviceError: the device hangs, has no room, or is gone; ``LostError`` in that case.
        """
        self.facts = self._look()
        if self.facts.emulated:
            rounds, seconds = min(rounds, EMULATED_RUNS), 0.0
        subjects = self._subjects(workloads)
        limit_s = JOB_LIMIT_S + seconds
        answer = self._ask(
            "measure", workloads, subjects, rounds=rounds, seconds=seconds, limit_s=limit_s
        )
        state = self._state(answer)
        peaks: list[float | None] = [None] * len(workloads)
        if memory and (self.runner is None or "memory" in vendor_runner(self.runner.name).kinds):
            peaks = [
                self._ask("memory", [load], [subject]).found[0].peak_memory_mb
                for load, subject in zip(workloads, subjects, strict=True)
            ]
        return {
            load.name: _measurement(load, found, peak, state)
            for load, found, peak in zip(workloads, answer.found, peaks, strict=True)
        }

    def predictor(self, path: Path, signature: str = "") -> AbstractContextManager[Predict]:
        """See ``Device.predictor``.

        Raises:
            InputError: the file is missing or the runtime cannot load it.
        """
        return self._predictor(_existing(path), signature)

    @contextmanager
    def _predictor(self, path: Path, signature: str) -> Iterator[Predict]:
        def predict(batch: Batch) -> torch.Tensor | Batch:
            row = sum(each[:1].nbytes for each in batch)
            parts = [
                self._run(path, signature, part)
                for part in batches(batch, max(1, MOST_BYTES // row))
            ]
            outputs = tuple(torch.cat(column) for column in zip(*parts, strict=True))
            return outputs[0] if len(outputs) == 1 else outputs

        yield predict

    def _run(self, path: Path, signature: str, batch: Batch) -> Batch:
        load = Workload("run", path, batch, signature)
        (found,) = self._ask("run", [load], self._subjects([load])).found
        outputs = []
        for number, output in enumerate(found.outputs):
            file = self._scratch / "output"
            self._folder.get(f"0.{number}", file)
            first, *rest = output.shape or (1,)
            values = np.fromfile(file, output.type).reshape(found.rows * first, *rest)
            outputs.append(torch.from_numpy(values))
        return tuple(outputs)

    def profile(
        self, workloads: Sequence[Workload], runs: int = 10
    ) -> dict[str, tuple[OperatorTime, ...]]:
        """See ``Device.profile``."""
        rounds = min(runs, EMULATED_RUNS) if self.facts.emulated else runs
        times = {}
        for load, subject in zip(workloads, self._subjects(workloads), strict=True):
            (found,) = self._ask("profile", [load], [subject], rounds=rounds).found
            events = found.operators or ()
            times[load.name] = slowest_first(OperatorTime(**each._asdict()) for each in events)
        return times

    def state(self) -> DeviceState:
        """See ``Device.state``."""
        self.facts = self._look()
        return self._state()

    def _look(self) -> Facts:
        return facts_of(self.name, self._folder.facts(), self._transport.properties())

    def _state(self, answer: Answer | None = None) -> DeviceState:
        facts = self.facts
        told = {**facts.told, **self._settings}
        if facts.emulated:
            told["emulated"] = facts.emulated
        return DeviceState(
            device=self.name,
            system=facts.system,
            cpu_model=next(core.model for core in facts.cores if core.number == self.affinity[0]),
            governor=answer.governor if answer else facts.governor,
            moments=answer.moments if answer else (facts.moment(self.affinity[0]),),
            load_average=facts.load_average,
            affinity=answer.affinity if answer else self.affinity,
            threads=self.threads,
            versions={"edgeprune": __version__, **(self._bundle.versions if self._bundle else {})},
            facts=told,
            gate_c=self.gate_c,
        )

    def _fix_performance(self) -> None:
        """Clocks that a phone can hold for long, where it has such a mode."""
        on, off = (*FIXED_PERFORMANCE, "true"), (*FIXED_PERFORMANCE, "false")
        done = self._folder.change("fixed-performance-mode", on, off)
        self._settings["fixed performance mode"] = "on" if done else "not available"

    def _subjects(self, workloads: Sequence[Workload]) -> list[Subject]:
        """The files and their inputs, copied there."""
        return [self._subject(f"{number}", load) for number, load in enumerate(workloads)]

    def _subject(self, place: str, load: Workload) -> Subject:
        path = _existing(load.path)
        there = f"cache/{sha256_of(path)[:32]}/model{path.suffix}"
        self._folder.put(path, there, path.name)
        given = []
        for number, value in enumerate(load.inputs):
            name = f"input-{place}-{number}"
            if self.runner is not None and path.suffix == ".tflite" and value.dtype == torch.int64:
                value = value.int()  # our runner does this there
            self._folder.write(name, value.detach().contiguous().numpy().tobytes())
            kind = str(value.dtype).removeprefix("torch.")
            given.append(Given(kind, name, (1, *value.shape[1:])))
        return Subject(load.name, f"../{there}", tuple(given), load.signature)

    def _ask(
        self,
        kind: Kind,
        workloads: Sequence[Workload],
        subjects: Sequence[Subject],
        rounds: int = 1,
        seconds: float = 0.0,
        limit_s: float = JOB_LIMIT_S,
    ) -> Answer:
        """Let the runner do a job.

        Raises:
            InputError: it refuses a file.
            DeviceError: it died, or does not run on this device.
        """
        runtimes = {RUNTIMES[runtime_of(str(load.path))] for load in workloads}
        if len(runtimes) > 1:
            raise InputError(f"{self.name}: got files of two runtimes, wanted one in a measurement")
        (runtime,) = runtimes
        delegate = any(_calls_ours(load.path) for load in workloads)
        job = Job(
            kind,
            runtime,
            tuple(subjects),
            libraries=self._libraries(runtime, delegate),
            threads=self.threads,
            cpus=self.affinity,
            rounds=rounds,
            seconds=seconds,
            gate_c=self.gate_c if kind == "measure" else None,
            limit_s=limit_s,
        )
        names = ", ".join(load.path.name for load in workloads)
        if self.runner is not None:
            return self._ask_vendors(self.runner, job, names)
        self._folder.write("job", job_text(job))
        words = [f"{self._bundle_place}/{self._pushed_bundle().program.name}", "job"]
        ended = self._folder.run(words, limit_s + GRACE_S)
        if ended.code == 1:
            raise InputError(f"{self.name}: {kind} {names}: {ended.words}")
        if ended.code >= MISSING:
            how = f"signal {ended.code - 128}" if ended.code > 128 else ended.words
            raise DeviceError(f"{self.name}: {kind} {names}: the runner died ({how})")
        ended.checked(f"{self.name}: {kind} {names}")
        file = self._scratch / ANSWER
        self._folder.get(ANSWER, file)
        return read_answer(file)

    def _ask_vendors(self, program: Path, job: Job, names: str) -> Answer:
        """Let a runtime's own program do it, started anew for every turn.

        Raises:
            InputError: it cannot do such a job.
            DeviceError: it failed.
        """
        runner = vendor_runner(program.name)
        if runner.runtime != job.runtime:
            raise InputError(f"{program.name} runs files of {runner.runtime}, got {names}")
        steps = runner.steps(self._pushed(program), job)
        before, texts = self.facts.moment(self.affinity[0]), []
        with console.progress(f"{program.name}: {names}", len(steps), "starts") as advance:
            for step in steps:
                ended = self._folder.run(step.words, job.limit_s + GRACE_S)
                ended.checked(f"{self.name}: {program.name} {step.subject.name}")
                texts.append((ended.stdout + ended.stderr).decode(errors="replace"))
                advance(1)
        self.facts = self._look()
        moments = (before, self.facts.moment(self.affinity[0]))
        return replace(vendor_answer(runner, job, texts), moments=moments)

    def _libraries(self, runtime: str, delegate: bool) -> tuple[str, ...]:
        """What the runner is to load, there."""
        if self.runner is None:
            loaded = self._pushed_bundle().loaded_for(runtime, delegate)
            return tuple(f"{self._bundle_place}/{each.name}" for each in loaded)
        if not delegate:
            return ()
        if runtime == "executorch":  # whose program loads none, and refuses
            return (LIBRARIES[runtime].file,)
        return (self._pushed(build_library(runtime, self._transport.target)),)

    def _pushed(self, program: Path) -> str:
        """Where a program or library is, from the session's folder."""
        place = f"cache/{sha256_of(program)[:32]}/{program.name}"
        self._folder.put(_present(program), place)
        return f"../{place}"

    def _pushed_bundle(self) -> Bundle:
        """The runner and its libraries, there since the first call."""
        if self._bundle is None:
            bundle = find_bundle(self._transport.target)
            held = (bundle.program, *bundle.libraries)
            key = content_hash({each.name: sha256_of(each) for each in held})
            for each in held:
                self._folder.put(each, f"cache/{key}/{each.name}")
            self._bundle, self._bundle_place = bundle, f"../cache/{key}"
        return self._bundle


@register_device("ssh")
def open_ssh(address: str, threads: int, cpu: int | None) -> Device:
    """``ssh:[user@]host[:port]``; the address may be a name of ``~/.ssh/config``."""

    def connected() -> Transport:
        from edgeprune.devices.ssh import SshTransport  # with asyncssh, which few commands need

        return SshTransport(address)

    return RemoteDevice(f"ssh:{address}", connected, threads, cpu)


@register_device("adb")
def open_adb(address: str, threads: int, cpu: int | None) -> Device:
    """``adb``, or ``adb:SERIAL`` where several are attached."""

    def connected() -> Transport:
        from edgeprune.devices.adb import AdbTransport  # with adbutils, likewise

        return AdbTransport(address)

    return RemoteDevice(f"adb:{address}" if address else "adb", connected, threads, cpu)


def _processors(facts: Facts, threads: int, cpu: int | None) -> tuple[int, ...]:
    allowed = [core.number for core in facts.cores]
    if not 1 <= threads <= len(allowed):
        raise InputError(f"{facts.name}: got {threads} threads, wanted 1 to {len(allowed)}")
    if cpu is None:
        return protocol.processors({core.number: core.capacity for core in facts.cores}, threads)
    if cpu not in allowed or allowed.index(cpu) + threads > len(allowed):
        raise InputError(
            f"{facts.name}: got {threads} threads from processor {cpu}, there are {allowed}"
        )
    return tuple(allowed[allowed.index(cpu) :][:threads])


def _measurement(
    load: Workload, found: Found, peak_memory_mb: float | None, state: DeviceState
) -> Measurement:
    return Measurement(
        name=load.name,
        samples_ms=found.samples_ms,
        first_run_ms=found.first_run_ms,
        warmup_runs=found.warmup_runs,
        load_ms=found.load_ms,
        peak_memory_mb=peak_memory_mb,
        file_size_mb=load.path.stat().st_size / MB,
        state=state,
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file. Lower the program first.")
    runtime_of(str(path))
    return path


def _present(program: Path) -> Path:
    if not program.is_file():
        raise InputError(f"--runner {program}: no such file")
    return program


def _calls_ours(path: Path) -> bool:
    return needs_library(path) if path.suffix == ".pte" else has_composites(path)
