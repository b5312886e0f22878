"""Where files run: one small interface per kind of device, found by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

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


class Device(Protocol):
    """An open connection to a device. Leaving the ``with`` block leaves nothing running."""

    name: str

    def measure(
        self, workloads: Sequence[Workload], rounds: int = 50, memory: bool = False
    ) -> dict[str, Measurement]:
        """Time the workloads in turns (A B A B …), ``rounds`` runs each after warm-up.

        Args:
            memory: also measure each one's peak memory, in a fresh process each.
        """
        ...

    def predictor(self, path: Path, signature: str = "") -> AbstractContextManager[Predict]:
        """Run a file on batches of any size, row by row; loaded once for the ``with`` block.

        Within the block the device is busy: it is asked nothing else.

        Args:
            signature: as of a ``Workload``.
        """
        ...

    def profile(self, workload: Workload, runs: int = 10) -> tuple[OperatorTime, ...]:
        """Time per operator, slowest first."""
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


def opener(name: str, threads: int = 1, cpu: int | None = None) -> Callable[[], Device]:
    """What opens a device, here or in another process; see ``connect``."""
    kind, _, address = name.partition(":")
    return partial(DRIVERS.named(kind), address, threads, cpu)


def connect(name: str, threads: int = 1, cpu: int | None = None) -> Device:
    """Open a device; use it in a ``with`` block.

    Args:
        name: ``local``, or another registered kind with its address (``kind:address``).
        threads: of the runtime, each pinned to a processor.
        cpu: the first processor to pin to; None takes the last ones the process may use.

    Raises:
        InputError: no such kind of device, or more threads than processors.
    """
    return opener(name, threads, cpu)()
