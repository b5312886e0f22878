"""What a device said about one file: raw timings, memory, size, and its own state meanwhile."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import files
from edgeprune.errors import InputError


@dataclass(frozen=True)
class DeviceState:
    """The device during a measurement; None where it does not tell.

    Attributes:
        device: as given to ``connect``.
        load_average: runnable processes over the last minute, before the measurement.
        affinity: processors the runtime may use.
        versions: of the runtime and what carries it.
        system: kernel or Android release, and machine, as in ``Linux 6.6.31 aarch64``.
    """

    device: str
    cpu_model: str
    governor: str | None
    frequency_before_mhz: float | None
    frequency_after_mhz: float | None
    temperature_before_c: float | None
    temperature_after_c: float | None
    load_average: float | None
    affinity: tuple[int, ...]
    threads: int
    versions: dict[str, str]
    system: str = ""


@dataclass(frozen=True)
class Measurement:
    """One artifact on one device.

    Attributes:
        samples_ms: single runs after warm-up, in order, interleaved with the other artifacts of
            the same measurement.
        first_run_ms: the first run after loading.
        load_ms: from the file to a ready method, weight packing included.
        peak_memory_mb: growth of the resident set from before loading to its highest, in a
            process of its own; None if not asked for. MB are 2**20 bytes.
        file_size_mb: the artifact's size.
    """

    name: str
    samples_ms: tuple[float, ...]
    first_run_ms: float
    load_ms: float
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

    def percentile_ms(self, percentile: int) -> float:
        """The latency that ``percentile`` of a hundred runs do not exceed."""
        return float(np.percentile(self.samples_ms, percentile))

    @property
    def trimmed_mean_ms(self) -> float:
        """The mean of the runs between the 10th and the 90th percentile."""
        ordered = np.sort(self.samples_ms)
        cut = len(ordered) // 10
        return float(ordered[cut : len(ordered) - cut].mean())

    @property
    def cv(self) -> float:
        """Standard deviation over mean of all runs: how noisy the device was."""
        return float(np.std(self.samples_ms) / np.mean(self.samples_ms))

    def to_json(self) -> dict[str, Any]:
        """The fields, and the statistics for readers without this class."""
        statistics = {
            name: getattr(self, name)
            for name in ("min_ms", "p50_ms", "p90_ms", "trimmed_mean_ms", "cv")
        }
        return {**asdict(self), "statistics": statistics}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Measurement:
        """The inverse of ``to_json``.

        Raises:
            InputError: a field is missing or unknown.
        """
        fields = dict(body)
        for extra in ("statistics", "format", "version"):
            fields.pop(extra, None)
        try:
            state = dict(fields.pop("state"))
            state["affinity"] = tuple(state["affinity"])
            fields["samples_ms"] = tuple(fields["samples_ms"])
            return cls(**fields, state=DeviceState(**state))
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
