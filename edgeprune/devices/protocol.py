"""The measuring protocol in numbers and pure functions; ``docs/measuring.md`` says it in words."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RUNS = 50
"""At least as many of each file, after warm-up …"""
LEAST_S = 1.0
"""… and for at least as long, all files of a measurement together: TFLite's benchmark does so."""
MOST_RUNS = 1_000_000
"""Where a run takes microseconds, this many end a measurement before its time is over."""

WARMUP_RUNS = 5
STABLE_RUNS = 5
STABLE_WITHIN = 0.02
WARMUP_LIMIT_S = 2.0

MOMENT_S = 1.0
"""Between two looks at clock and temperature."""

NOISY = 0.2
THROTTLED = 0.1
SLOWED = 0.1
WINDOW_S = 10.0

GATE_C = 37.0
"""What a phone's battery cools to before its benchmark in MLPerf."""
DIE_GATE_C = 60.0
"""For boards and PCs, whose zones are on the die: a Raspberry Pi 5 idles at 50 and slows at 80."""
COOL_STEP_S = 5.0
COOL_STEP_C = 0.2
COOL_LIMIT_S = 300.0

Z95 = 1.959964


def is_stable(samples_ms: Sequence[float]) -> bool:
    """Whether warm-up may end: the medians of the last two windows of five agree within 2%."""
    if len(samples_ms) < 2 * STABLE_RUNS:
        return False
    now = statistics.median(samples_ms[-STABLE_RUNS:])
    before = statistics.median(samples_ms[-2 * STABLE_RUNS : -STABLE_RUNS])
    return abs(now - before) <= STABLE_WITHIN * now


def trimmed_mean(samples_ms: Sequence[float]) -> float:
    """The mean without the lowest and the highest tenth."""
    ordered = np.sort(samples_ms)
    cut = len(ordered) // 10
    return float(ordered[cut : len(ordered) - cut].mean())


def noisy(samples_ms: Sequence[float]) -> str | None:
    """A flag if the runs spread, or if some took very long.

    Not by the coefficient of variation: one run of fifty that lost the processor for 4 ms makes
    it 50% and moves no percentile that a budget bounds.
    """
    low, middle, high = np.percentile(samples_ms, (10, 50, 90))
    spread, excess = (high - low) / middle, np.mean(samples_ms) / middle - 1
    if spread > NOISY:
        return f"noisy: p10 to p90 span {spread:.0%} of the median, wanted {NOISY:.0%} at most"
    if excess > NOISY:
        return f"noisy: the mean is {excess:.0%} above the median: other work took the processor"
    return None


def throttled(frequencies_mhz: Sequence[float | None]) -> str | None:
    """A flag if the clock fell by more than 10% from its highest so far."""
    highest, drop = 0.0, 0.0
    worst = (0.0, 0.0)
    for clock in frequencies_mhz:
        if clock is None:
            continue
        highest = max(highest, clock)
        if 1 - clock / highest > drop:
            drop, worst = 1 - clock / highest, (highest, clock)
    if drop <= THROTTLED:
        return None
    return f"throttled: the clock fell from {worst[0]:.0f} to {worst[1]:.0f} MHz"


def slowed(samples_ms: Sequence[float]) -> str | None:
    """A flag if the last window of ten seconds took over 10% longer than the first.

    The one sign of throttling where no clock is told, as in a virtual machine.
    """
    medians = [each.p50_ms for each in windows(samples_ms)]
    if len(medians) < 2 or medians[-1] <= (1 + SLOWED) * medians[0]:
        return None
    return f"slowed: from {medians[0]:.3g} ms in the first ten seconds to {medians[-1]:.3g}"


def hot(temperatures_c: Sequence[float | None], gate_c: float | None) -> str | None:
    """A flag if the first temperature is above the gate."""
    first = next((each for each in temperatures_c if each is not None), None)
    if first is None or gate_c is None or first <= gate_c:
        return None
    return f"hot: began at {first:.1f} °C, wanted {gate_c:.0f} °C at most"


@dataclass(frozen=True)
class Window:
    """Ten seconds of runs; ``at_s`` counts time spent in runs."""

    at_s: float
    runs: int
    p50_ms: float
    max_ms: float


def windows(samples_ms: Sequence[float]) -> tuple[Window, ...]:
    """The runs in windows of ten seconds; the last takes what is left over."""
    ends_s = np.cumsum(samples_ms) / 1e3
    count = max(1, int(ends_s[-1] // WINDOW_S))
    numbers = np.minimum(ends_s // WINDOW_S, count - 1)
    parts = np.split(np.asarray(samples_ms), np.flatnonzero(np.diff(numbers)) + 1)
    starts_s = np.cumsum([0.0, *(part.sum() / 1e3 for part in parts[:-1])])
    return tuple(
        Window(float(at), len(part), float(np.median(part)), float(part.max()))
        for at, part in zip(starts_s, parts, strict=True)
    )


@dataclass(frozen=True)
class Interval:
    """A median and its 95% interval."""

    value: float
    low: float
    high: float


def median_interval(values: Sequence[float]) -> Interval:
    """The median, and its 95% interval from the ordered values alone.

    No shape of the noise is assumed. Of fewer than six values it spans them all, and says less.
    """
    ordered = np.sort(values)
    rank = math.floor((len(ordered) - Z95 * math.sqrt(len(ordered))) / 2)
    first = max(0, rank - 1)
    return Interval(float(np.median(ordered)), float(ordered[first]), float(ordered[-1 - first]))


def ratio(samples_ms: Sequence[float], base_ms: Sequence[float]) -> Interval:
    """How long one file takes of another's time, from runs in turns, pair by pair."""
    return median_interval(np.divide(samples_ms, base_ms).tolist())


def clusters(capacity: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    """Processors of one capacity together, the fastest first.

    Args:
        capacity: by processor, ``cpu_capacity`` of Linux or else its highest clock.
    """
    groups: dict[int, list[int]] = {}
    for cpu in sorted(capacity):
        groups.setdefault(capacity[cpu], []).append(cpu)
    return tuple(tuple(groups[each]) for each in sorted(groups, reverse=True))


def processors(capacity: Mapping[int, int], threads: int) -> tuple[int, ...]:
    """Where to pin: the last ones of the fastest cluster, then of the next.

    The first processor serves most interrupts.
    """
    ranked = [cpu for cluster in clusters(capacity) for cpu in reversed(cluster)]
    return tuple(sorted(ranked[:threads]))


def cool_down(
    temperature_c: Callable[[], float | None],
    gate_c: float,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until the device is no warmer than the gate, stops cooling, or five minutes are over.

    What it then has is in the measurement, which flags itself as hot.
    """
    now = temperature_c()
    for _ in range(int(COOL_LIMIT_S / COOL_STEP_S)):
        if now is None or now <= gate_c:
            return
        wait(COOL_STEP_S)
        before, now = now, temperature_c()
        if now is None or before - now < COOL_STEP_C:
            return
