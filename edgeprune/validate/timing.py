"""The lowered file against the dense one on the clock, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.budget import AbsoluteBudget, Budget
from edgeprune.devices import Device, Measurement, Workload
from edgeprune.devices.measurement import EMULATED
from edgeprune.devices.protocol import Interval, median_interval, ratio
from edgeprune.errors import EdgepruneError
from edgeprune.lower import Artifact
from edgeprune.task import Batch
from edgeprune.validate.check import Check, bound_check

ROUNDS = 50
# Devices count memory in 2**20 bytes, budgets in 10**6.
MB_PER_MIB = 2**20 / 1e6


@dataclass(frozen=True)
class Timing:
    """The pruned and the dense file, measured in turns (A B A B …) on the same device."""

    pruned: Measurement
    dense: Measurement

    @property
    def ratio(self) -> float:
        """The median, over turns, of pruned over dense latency."""
        return ratio(self.pruned.samples_ms, self.dense.samples_ms).value

    @property
    def saved_ms(self) -> float:
        """The median, over turns, of dense minus pruned latency."""
        return self._saved.value

    @property
    def saved_at_least_ms(self) -> float:
        """The lower end of the 95% interval of ``saved_ms``."""
        return self._saved.low

    @property
    def _saved(self) -> Interval:
        saved = np.subtract(self.dense.samples_ms, self.pruned.samples_ms)
        return median_interval(saved.tolist())

    @property
    def flags(self) -> tuple[str, ...]:
        """What speaks against either file's numbers."""
        return tuple(dict.fromkeys((*self.pruned.flags, *self.dense.flags)))

    @property
    def emulated(self) -> bool:
        """Whether its times are an emulator's, which count as not measured."""
        return self.pruned.state.emulated

    def resolve(self, budget: Budget) -> AbsoluteBudget:
        """The budget in numbers, given what the dense file cost in this very measurement.

        Raises:
            EdgepruneError: it bounds the memory, which was not measured.
        """
        if budget.peak_memory is not None and self.dense.peak_memory_mb is None:
            raise EdgepruneError(
                f'budget "{budget}" bounds the memory, but only latency was measured. '
                "Measure with memory=True."
            )
        return budget.resolve(
            self.dense.percentile_ms(budget.percentile),
            (self.dense.peak_memory_mb or 0.0) * MB_PER_MIB,
            self.dense.file_size_mb * MB_PER_MIB,
        )

    def to_json(self) -> dict[str, Any]:
        """Both measurements, and what follows from them for readers without this class."""
        return {
            "ratio": self.ratio,
            "saved_ms": self.saved_ms,
            "saved_at_least_ms": self.saved_at_least_ms,
            "flags": list(self.flags),
            "pruned": self.pruned.to_json(),
            "dense": self.dense.to_json(),
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Timing:
        """The inverse of ``to_json``."""
        return cls(Measurement.from_json(body["pruned"]), Measurement.from_json(body["dense"]))


def check_latency(
    artifact: Artifact,
    device: Device,
    dense: Artifact,
    example: Batch,
    *,
    fit: Callable[[Batch], Batch] = lambda batch: batch,
    rounds: int = ROUNDS,
    memory: bool = False,
) -> Timing:
    """Measure two files in turns, with the device's threads.

    Args:
        dense: the uncut model, lowered at the same precision.
        example: inputs of the dense file in any batch; the first example is run.
        fit: of the cut program: what brings them to the pruned file's size.
        memory: also measure peak memory, in processes of their own.

    Raises:
        InputError: a file is missing, cut short, or not for this device's runtime.
    """
    row = tuple(each[:1].contiguous() for each in example)
    loads = [Workload("dense", dense.path, row), Workload("pruned", artifact.path, fit(row))]
    measured = device.measure_in_turns(loads, rounds, memory)
    return Timing(measured["pruned"], measured["dense"])


def cost_checks(timing: Timing, bounds: AbsoluteBudget) -> tuple[Check, ...]:
    """Latency, memory and size against their bounds, and latency against the dense file's."""
    pruned, dense = timing.pruned, timing.dense
    faster = Check(
        name="faster_than_dense",
        passed=timing.saved_at_least_ms > 0,
        got=pruned.p50_ms,
        wanted=dense.p50_ms,
        note=(
            f"median ms; {timing.ratio:.3f} of dense, saves {timing.saved_ms:.3g} ms, "
            f"at least {timing.saved_at_least_ms:.3g} ms (95%)"
        ),
    )
    if timing.emulated:
        faster = Check(faster.name, None, None, None, EMULATED)
    return (*bound_checks(pruned, bounds), faster)


def bound_checks(found: Measurement, bounds: AbsoluteBudget) -> tuple[Check, ...]:
    """A file's latency, memory and size against their bounds; flags stand in the notes.

    An emulator's times and memory are its own: they neither pass nor fail.
    """
    told, memory = not found.state.emulated, found.peak_memory_mb
    latency = found.percentile_ms(bounds.percentile) if told else None
    peak = memory * MB_PER_MIB if told and memory is not None else None
    note = "; ".join((f"p{bounds.percentile}, measured", *found.flags)) if told else EMULATED
    return (
        bound_check("latency_ms", latency, bounds.latency_ms, note),
        bound_check(
            "peak_memory_mb",
            peak,
            bounds.peak_memory_mb,
            "not measured" if peak is None else "measured",
        ),
        bound_check("size_mb", found.file_size_mb * MB_PER_MIB, bounds.size_mb, "of the file"),
    )


def over_budget(timing: Timing, bounds: AbsoluteBudget) -> bool:
    """Whether a bound on latency, memory or size was measured to be broken."""
    return any(check.passed is False for check in bound_checks(timing.pruned, bounds))
