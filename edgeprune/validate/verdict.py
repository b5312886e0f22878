"""The Verdict noun: what was checked, what was found, and how a build ends."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgeprune import files
from edgeprune.cost.vendor import VENDOR_ESTIMATED
from edgeprune.devices import write_measurement
from edgeprune.errors import InputError
from edgeprune.validate.check import Check
from edgeprune.validate.numerics import Numerics
from edgeprune.validate.scores import Scores
from edgeprune.validate.timing import Timing

Status = Literal[
    "met",
    "wrong_numerics",
    "fell_back",
    "not_measured",
    "over_budget",
    "not_faster",
    "below_score",
]
EXIT_CODES: dict[Status, int] = {
    "met": 0,
    "wrong_numerics": 1,
    "fell_back": 1,
    "not_faster": 1,
    "over_budget": 4,
    "below_score": 5,
    "not_measured": 6,
}
# A failed check and what it makes of the verdict; the first in this order decides.
DECIDES: dict[str, Status] = {
    "numerics": "wrong_numerics",
    "selection": "wrong_numerics",
    "score_kept": "wrong_numerics",
    "tflite_runtime": "wrong_numerics",
    "on_accelerator": "fell_back",
    "latency_ms": "over_budget",
    "peak_memory_mb": "over_budget",
    "size_mb": "over_budget",
    "faster_than_dense": "not_faster",
    "score_floor": "below_score",
}
# Known without measuring.
WRONG: tuple[Status, ...] = ("wrong_numerics", "fell_back")


def status_of(checks: Iterable[Check], measured: bool) -> Status:
    """What the checks come to: what is wrong with the file, then whether anything was measured."""
    failed = {DECIDES[check.name] for check in checks if check.passed is False}
    for wrong in WRONG:
        if wrong in failed:
            return wrong
    if not measured:
        return "not_measured"
    return next((status for status in DECIDES.values() if status in failed), "met")


@dataclass(frozen=True)
class Predicted:
    """What the cost table foretold.

    Attributes:
        estimated: from a profile's numbers, not from pieces measured on the device.
        vendor: by the compiler of the device's accelerator, of this very file.
    """

    latency_ms: float
    peak_memory_mb: float
    estimated: bool
    vendor: bool = False

    @property
    def provenance(self) -> str:
        """As it is said beside the numbers."""
        if self.vendor:
            return VENDOR_ESTIMATED
        return "estimated" if self.estimated else "predicted"


@dataclass(frozen=True)
class Turn:
    """One turn of the closed loop: plans solved for with one correction of the cost table.

    Attributes:
        correction: the factor on the table's latency, from what was measured before.
        plans: how many were measured.
        over_budget: how many of them were over it.
    """

    correction: float
    plans: int
    over_budget: int


@dataclass(frozen=True)
class Verdict:
    """Whether a lowered file is right, within budget, faster than dense and good enough.

    Attributes:
        status: how it all ends.
        checks: each with numbers.
        numerics, scores: None where no runtime for the file was at hand.
        timing: None where no device was at hand.
        predicted: None if nothing was predicted.
        sha256: of the file that was checked.
        turns: how the plan was found; empty where nothing was searched for, or measured.
    """

    status: Status
    checks: tuple[Check, ...]
    numerics: Numerics | None
    scores: Scores | None
    timing: Timing | None
    predicted: Predicted | None
    sha256: str
    turns: tuple[Turn, ...] = ()

    @property
    def exit_code(self) -> int:
        """As the command ends."""
        return EXIT_CODES[self.status]

    def check(self, name: str) -> Check:
        """The check of this name; KeyError if it was not made."""
        return {check.name: check for check in self.checks}[name]

    @property
    def reason(self) -> str:
        """The failed checks in one line, with their numbers; empty if all is well."""
        return "; ".join(str(check) for check in self.checks if check.passed is False)

    @property
    def loop(self) -> str:
        """The closed loop in one line; empty if there was none."""
        return "; ".join(
            f"round {number}, table × {turn.correction:.3f}: "
            f"{turn.over_budget} of {turn.plans} plans over budget"
            for number, turn in enumerate(self.turns, 1)
        )

    def to_json(self) -> dict[str, Any]:
        """As stored in ``verdict.json``."""
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "sha256": self.sha256,
            "checks": [asdict(check) for check in self.checks],
            "numerics": None if self.numerics is None else asdict(self.numerics),
            "scores": None if self.scores is None else asdict(self.scores),
            "predicted": None if self.predicted is None else asdict(self.predicted),
            "timing": None if self.timing is None else self.timing.to_json(),
            "turns": [asdict(turn) for turn in self.turns],
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Verdict:
        """Read what :meth:`to_json` gave."""
        numerics, scores = body["numerics"], body["scores"]
        predicted, timing = body["predicted"], body["timing"]
        if scores is not None and scores["interval"] is not None:
            scores = scores | {"interval": tuple(scores["interval"])}
        return cls(
            status=body["status"],
            checks=tuple(Check(**check) for check in body["checks"]),
            numerics=None if numerics is None else Numerics.from_json(numerics),
            scores=None if scores is None else Scores(**scores),
            timing=None if timing is None else Timing.from_json(timing),
            predicted=None if predicted is None else Predicted(**predicted),
            sha256=body["sha256"],
            turns=tuple(Turn(**turn) for turn in body.get("turns", ())),
        )

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``verdict.json``, and the file's ``measurement.json`` if it was measured."""
        if self.timing is not None:
            write_measurement(Path(folder, "measurement.json"), self.timing.pruned)
        return files.write_json(Path(folder, "verdict.json"), "verdict", self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Verdict:
        """Read a ``verdict.json``.

        Raises:
            InputError: missing, damaged, or from a newer edgeprune.
        """
        body = files.read_json(path, "verdict")
        try:
            return cls.from_json(body)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a complete verdict ({error!r})") from error
