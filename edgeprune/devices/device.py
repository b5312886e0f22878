"""Where files run: one small interface per kind of device, found by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

from edgeprune.devices import protocol
from edgeprune.devices.measurement import DeviceState, Measurement
from edgeprune.registry import Registry
from edgeprune.task import Batch, Predict


@dataclass(frozen=True)
class Workload:
    """A lowered file to run.

    Attributes:
        name: how the results call it; unique within a measurement.
        inputs: one example as the file takes it, batch 1.
        signature: which of several ways into the file; the first if not given.
    """

    name: str
    path: Path
    inputs: Batch
    signature: str = ""


@dataclass(frozen=True)
class OperatorTime:
    """One kind of event in a profile.

    Attributes:
        op: what was computed, such as ``linear`` or ``layer_norm``.
        event: the runtime's own word for it.
        delegate: ``xnnpack``, ``edgeprune`` or ``cpu``.
        ms: median over runs, summed over calls.
        calls: how often per run.
    """

    op: str
    event: str
    delegate: str
    ms: float
    calls: int


def slowest_first(times: Iterable[OperatorTime]) -> tuple[OperatorTime, ...]:
    """As profiles list them."""
    return tuple(sorted(times, key=lambda time: -time.ms))


class Device(Protocol):
    """An open connection to a device. Leaving the ``with`` block leaves nothing running.

    A driver derives from it, for ``measure`` and ``gate_c``, and brings the rest.
    """

    name: str

    gate_c: float | None = protocol.GATE_C
    """The temperature that it is to cool to before a measurement; None does not wait."""

    title: str = ""
    """What its maker calls it, once it is open; empty where that is not told."""

    runner: Path | None = None
    """One of the runtimes' own programs for the device, to time files in our runner's place."""

    def measure(
        self,
        file: str | os.PathLike[str],
        inputs: Batch,
        runs: int = protocol.RUNS,
        *,
        seconds: float = protocol.LEAST_S,
        memory: bool = False,
        signature: str = "",
    ) -> Measurement:
        """Time one file, as ``measure_in_turns`` does several.

        Args:
            file: an artifact, or the path of a lowered file.
            inputs: a batch of any size; its first example is run.
        """
        path = Path(file)
        row = tuple(each[:1].contiguous() for each in inputs)
        load = Workload(path.name, path, row, signature)
        return self.measure_in_turns([load], runs, memory, seconds)[load.name]

    def measure_in_turns(
        self,
        workloads: Sequence[Workload],
        rounds: int = protocol.RUNS,
        memory: bool = False,
        seconds: float = protocol.LEAST_S,
    ) -> dict[str, Measurement]:
        """Time the workloads in turns (A B A B …) after warm-up; what each took, by name.

        Args:
            rounds: at least as many runs of each …
            memory: also measure each one's peak memory, in a fresh process each.
            seconds: … and at least so long, all together.
        """
        ...

    def predictor(self, path: Path, signature: str = "") -> AbstractContextManager[Predict]:
        """Run a file on batches of any size, row by row; loaded once for the ``with`` block.

        Within the block the device is busy: it is asked nothing else.

        Args:
            signature: as of a ``Workload``.
        """
        ...

    def profile(
        self, workloads: Sequence[Workload], runs: int = 10
    ) -> dict[str, tuple[OperatorTime, ...]]:
        """Time per operator of each workload, slowest first, by name."""
        ...

    def state(self) -> DeviceState:
        """The device at this moment."""
        ...

    def __enter__(self) -> Device: ...

    def __exit__(self, *reason: object) -> None: ...


Driver: TypeAlias = Callable[[str, int, int | None], Device]
"""``open(address, threads, cpu) -> Device``, for ``kind`` or ``kind:address``."""
DRIVERS: Registry[Driver] = Registry("device")
register_device = DRIVERS.register


def opener(
    name: str,
    threads: int = 1,
    cpu: int | None = None,
    gate_c: float | None = None,
    runner: Path | None = None,
) -> Callable[[], Device]:
    """What opens a device, here or in another process; see ``connect``."""
    kind, _, address = name.partition(":")
    return partial(_opened, DRIVERS.named(kind), address, threads, cpu, gate_c, runner)


def _opened(
    driver: Driver,
    address: str,
    threads: int,
    cpu: int | None,
    gate_c: float | None,
    runner: Path | None,
) -> Device:
    device = driver(address, threads, cpu)
    if gate_c is not None:
        device.gate_c = gate_c
    device.runner = runner
    return device


def connect(
    name: str,
    threads: int = 1,
    cpu: int | None = None,
    gate_c: float | None = None,
    runner: Path | None = None,
) -> Device:
    """Open a device; use it in a ``with`` block.

    Args:
        name: ``local``, or another registered kind with its address (``kind:address``).
        threads: of the runtime, each pinned to a processor.
        cpu: the first processor to pin to; None takes the last ones of the fastest cluster.
        gate_c: the temperature to cool to before a measurement; None takes what suits the kind of
            device: 37 °C for a phone, 60 °C for a board or PC, which tells its processor's.
        runner: an ``executor_runner`` or ``benchmark_model`` made for the device, to time files in
            our runner's place (docs/runner.md).

    Raises:
        InputError: no such kind of device, or more threads than processors.
    """
    return opener(name, threads, cpu, gate_c, runner)()
