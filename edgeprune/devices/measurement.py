"""What a device said about one file: raw timings, memory, size, and its own state meanwhile."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import files
from edgeprune.devices import protocol
from edgeprune.errors import InputError

EMULATED = "emulated: not a latency"
STATISTICS = ("min_ms", "p50_ms", "p90_ms", "max_ms", "trimmed_mean_ms", "cv")


@dataclass(frozen=True)
class Moment:
    """A look at the device; None where it does not tell.

    Attributes:
        at_s: since the measurement began.
        frequency_mhz: of the first processor that the runtime may use.
        temperature_c: what ``docs/measuring.md`` gates on: a phone's battery, else the hottest
            thermal zone.
    """

    at_s: float
    frequency_mhz: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class DeviceState:
    """The device during a measurement; None where it does not tell.

    Attributes:
        device: as given to ``connect``.
        system: kernel or Android release, and machine, as in ``Linux 6.6.31 aarch64``.
        moments: looks at clock and temperature: before the first file is loaded, at most one a
            second between runs, and right after the last run. One alone is the device now.
        load_average: runnable processes over the last minute, before the measurement.
        affinity: processors the runtime may use.
        versions: of the runtime and what carries it.
        facts: what else was so: ``screen``, ``charging``, ``battery``, ``virtual machine``,
            ``fixed performance mode``, ``emulated`` (by what; then no time is a latency).
        gate_c: the temperature that the device was to cool to before it began.
    """

    device: str
    system: str
    cpu_model: str
    governor: str | None
    moments: tuple[Moment, ...]
    load_average: float | None
    affinity: tuple[int, ...]
    threads: int
    versions: dict[str, str]
    facts: dict[str, str] = field(default_factory=dict)
    gate_c: float | None = None

    @property
    def emulated(self) -> bool:
        """Whether another processor pretends to be this one: its times are no latencies."""
        return "emulated" in self.facts

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> DeviceState:
        """The inverse of ``asdict``; KeyError or TypeError if a field is missing or unknown."""
        held = {
            "moments": tuple(Moment(**each) for each in body["moments"]),
            "affinity": tuple(body["affinity"]),
        }
        return cls(**body | held)


@dataclass(frozen=True)
class Measurement:
    """One artifact on one device.

    Attributes:
        samples_ms: single runs after warm-up, in order, interleaved with the other artifacts of
            the same measurement.
        first_run_ms: the first run after loading; None where the runner does not tell.
        warmup_runs: how many came between it and the samples.
        load_ms: from the file to a ready method, weight packing included; None likewise.
        peak_memory_mb: growth of the resident set from before loading to its highest, in a
            process of its own; None if not asked for. MB are 2**20 bytes.
        file_size_mb: the artifact's size.
    """

    name: str
    samples_ms: tuple[float, ...]
    first_run_ms: float | None
    warmup_runs: int
    load_ms: float | None
    peak_memory_mb: float | None
    file_size_mb: float
    state: DeviceState

    @property
    def min_ms(self) -> float:
        """The fastest run."""
        return min(self.samples_ms)

    @property
    def p50_ms(self) -> float:
        """The median run."""
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        """Nine runs of ten are at most this slow."""
        return self.percentile_ms(90)

    @property
    def max_ms(self) -> float:
        """The slowest run."""
        return max(self.samples_ms)

    def percentile_ms(self, percentile: int) -> float:
        """The latency that ``percentile`` of a hundred runs do not exceed."""
        return float(np.percentile(self.samples_ms, percentile))

    @property
    def trimmed_mean_ms(self) -> float:
        """The mean of the runs between the 10th and the 90th percentile."""
        return protocol.trimmed_mean(self.samples_ms)

    @property
    def cv(self) -> float:
        """Standard deviation over mean of all runs: how noisy the device was."""
        return float(np.std(self.samples_ms) / np.mean(self.samples_ms))

    @property
    def flags(self) -> tuple[str, ...]:
        """What speaks against these numbers, as in ``noisy: …``; empty if nothing does."""
        state = self.state
        told = (
            protocol.noisy(self.samples_ms),
            protocol.slowed(self.samples_ms),
            protocol.throttled([each.frequency_mhz for each in state.moments]),
            protocol.hot([each.temperature_c for each in state.moments], state.gate_c),
            EMULATED if state.emulated else None,
        )
        return tuple(flag for flag in told if flag is not None)

    def to_json(self) -> dict[str, Any]:
        """The fields, and what follows from them for readers without this class."""
        statistics = {name: getattr(self, name) for name in STATISTICS}
        return {**asdict(self), "statistics": statistics, "flags": list(self.flags)}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Measurement:
        """The inverse of ``to_json``.

        Raises:
            InputError: a field is missing or unknown.
        """
        fields = dict(body)
        for extra in ("statistics", "flags", "format", "version"):
            fields.pop(extra, None)
        try:
            state = DeviceState.from_json(fields.pop("state"))
            fields["samples_ms"] = tuple(fields["samples_ms"])
            return cls(**fields, state=state)
        except (KeyError, TypeError) as error:
            raise InputError(f"not a measurement: {error}") from error


def write_measurement(path: str | os.PathLike[str], measurement: Measurement) -> Path:
    """Write ``measurement.json``."""
    return files.write_json(path, "measurement", measurement.to_json())


def read_measurement(path: str | os.PathLike[str]) -> Measurement:
    """Read ``measurement.json``.

    Raises:
        InputError: missing, damaged, or from a newer edgeprune.
    """
    try:
        return Measurement.from_json(files.read_json(path, "measurement"))
    except InputError as error:
        if str(error).startswith("not a measurement"):
            raise InputError(f"{path}: {error}") from error
        raise
