"""What the pruned model may cost at most, and the score it must keep."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeprune.errors import InputError
from edgeprune.toml import near

EXAMPLE = 'for example "latency=60%" or "latency.p90=12ms,memory=40MB,size=30MB,score=0.7"'

_UNITS = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "memory": {"KB": 1e-3, "MB": 1.0, "GB": 1e3},
    "size": {"KB": 1e-3, "MB": 1.0, "GB": 1e3},
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([%a-zA-Z]*)")
_PERCENTILE = re.compile(r"p([1-9][0-9]?)")


@dataclass(frozen=True)
class Bound:
    """An upper bound.

    Attributes:
        value: milliseconds or megabytes (10**6 bytes); a fraction of the dense model if relative.
        relative: whether ``value`` is that fraction, between 0 and 1.
    """

    value: float
    relative: bool = False

    def of(self, dense: float) -> float:
        """The absolute bound, given what the dense model costs."""
        return self.value * dense if self.relative else self.value


@dataclass(frozen=True)
class AbsoluteBudget:
    """A budget in numbers; None where nothing was asked.

    Attributes:
        percentile: the percentile of the measured latency that ``latency_ms`` bounds.
        latency_share: of the dense model's latency, where that is how it was asked.
    """

    latency_ms: float | None
    peak_memory_mb: float | None
    size_mb: float | None
    min_score: float | None
    percentile: int
    latency_share: float | None = None

    def latency_beside(self, dense_ms: float | None) -> float | None:
        """The bound in ms for what was measured in turns with a dense model of ``dense_ms``.

        A processor's speed drifts by 10% within minutes; the share in one measurement does not.
        """
        if self.latency_share is None or dense_ms is None:
            return self.latency_ms
        return self.latency_share * dense_ms


@dataclass(frozen=True)
class Budget:
    """Upper bounds on latency, peak memory and file size, and a floor under the score."""

    latency: Bound | None = None
    peak_memory: Bound | None = None
    size: Bound | None = None
    min_score: float | None = None
    percentile: int = 50

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``"latency=60%"`` or ``"latency.p90=12ms,memory=40MB,size=30MB,score=0.7"``.

        Raises:
            InputError: not of that form, a bound that is no cut, or no upper bound at all.
        """
        pairs = []
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not (key and equals and value):
                raise _refusal(text, f"'{part.strip()}' is not of the form key=value")
            pairs.append((key, value))
        return cls._from_pairs(pairs, text)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Budget:
        """Read the TOML form: ``latency = "60%"``, ``latency.p90 = "12ms"``, ``score = 0.7``.

        Raises:
            InputError: as ``parse`` does.
        """
        pairs = list(_flattened(table))
        return cls._from_pairs(pairs, ",".join(f"{key}={value}" for key, value in pairs))

    @classmethod
    def _from_pairs(cls, pairs: list[tuple[str, str]], text: str) -> Budget:
        bounds: dict[str, Bound] = {}
        min_score: float | None = None
        percentile = 50
        for written, value in pairs:
            key, dot, suffix = written.partition(".")
            if key in bounds or (key == "score" and min_score is not None):
                raise _refusal(text, f"{key} is given twice")
            if key == "latency" and dot:
                percentile = _percentile(suffix, text)
            elif dot or key not in (*_UNITS, "score"):
                hint = near(written, (*_UNITS, "score")).removesuffix(".")
                raise _refusal(text, f"there is no '{written}'{hint}")
            if key == "score":
                min_score = _score(value, text)
            else:
                bounds[key] = _bound(key, value, text)
        if not bounds:
            raise _refusal(text, "it needs a bound on latency, memory or size")
        return cls(
            bounds.get("latency"), bounds.get("memory"), bounds.get("size"), min_score, percentile
        )

    def resolve(
        self, dense_latency_ms: float, dense_peak_memory_mb: float, dense_size_mb: float
    ) -> AbsoluteBudget:
        """Turn relative bounds into numbers, given what the dense model costs on the device."""
        return AbsoluteBudget(
            latency_ms=None if self.latency is None else self.latency.of(dense_latency_ms),
            peak_memory_mb=(
                None if self.peak_memory is None else self.peak_memory.of(dense_peak_memory_mb)
            ),
            size_mb=None if self.size is None else self.size.of(dense_size_mb),
            min_score=self.min_score,
            percentile=self.percentile,
            latency_share=self.latency.value if self.latency and self.latency.relative else None,
        )

    def in_numbers(self) -> AbsoluteBudget:
        """The bounds where no dense model is at hand.

        Raises:
            InputError: one is relative to it, or a score is asked for.
        """
        bounds = (self.latency, self.peak_memory, self.size)
        if self.min_score is not None or any(each and each.relative for each in bounds):
            raise InputError(
                f'budget "{self}": only a file is measured here, without a dense model or a task; '
                'wanted numbers, as in "latency=12ms,memory=40MB"'
            )
        return self.resolve(0.0, 0.0, 0.0)

    def __str__(self) -> str:
        latency_key = "latency" if self.percentile == 50 else f"latency.p{self.percentile}"
        written = [
            f"{key}={_number(100 * bound.value)}%"
            if bound.relative
            else f"{key}={_number(bound.value)}{unit}"
            for key, bound, unit in (
                (latency_key, self.latency, "ms"),
                ("memory", self.peak_memory, "MB"),
                ("size", self.size, "MB"),
            )
            if bound is not None
        ]
        if self.min_score is not None:
            written.append(f"score={_number(self.min_score)}")
        return ",".join(written)


def _flattened(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _bound(key: str, value: str, text: str) -> Bound:
    units = _UNITS[key]
    match = _QUANTITY.fullmatch(value)
    amount = _float(match.group(1)) if match else None
    unit = match.group(2) if match else ""
    if amount is None or unit not in (*units, "%"):
        raise _refusal(text, f"{key}: got '{value}', wanted a number with %, {', '.join(units)}")
    if amount <= 0:
        raise _refusal(text, f"{key}: got '{value}', wanted more than zero")
    if unit != "%":
        return Bound(amount * units[unit])
    if amount >= 100:
        raise _refusal(text, f"{key}: '{value}' of the dense model is not a cut; wanted below 100%")
    return Bound(amount / 100, relative=True)


def _score(value: str, text: str) -> float:
    score = _float(value)
    if score is None or score <= 0:
        raise _refusal(text, f"score: got '{value}', wanted a number above zero, as in 0.7")
    return score


def _percentile(suffix: str, text: str) -> int:
    match = _PERCENTILE.fullmatch(suffix)
    if match is None:
        raise _refusal(text, f"latency.{suffix}: wanted a percentile from p1 to p99")
    return int(match.group(1))


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.12g}"


def _refusal(text: str, problem: str) -> InputError:
    return InputError(f'budget "{text}": {problem}. Write it as {EXAMPLE}.')
