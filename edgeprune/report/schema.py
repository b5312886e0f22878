"""What a report holds: the nouns of ``report.json``, and the only place that defines them.

No user path, calibration sample, user name or telemetry enters a report, and so none enters the
page, which shows nothing else. ``compose`` guarantees it: it copies only numbers, names of sites
and operators, versions, hashes, the file's bare name, and the words of the task and the profile;
of a device it takes the kind, never the address. ``build.command_of`` writes the command without
folders. What a task or profile calls itself is its author's to choose.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprune import files
from edgeprune.cost.vendor import VENDOR_ESTIMATED
from edgeprune.devices import DeviceState
from edgeprune.errors import InputError
from edgeprune.report.decode import decode
from edgeprune.solve import Certificate
from edgeprune.validate.check import Check
from edgeprune.validate.numerics import Numerics
from edgeprune.validate.verdict import Status

ESTIMATED = "estimated"
ESTIMATES = (ESTIMATED, VENDOR_ESTIMATED)


def measured_on(device: str) -> str:
    """The provenance of a number that a device gave."""
    return f"measured on {device}"


@dataclass(frozen=True)
class Number:
    """A number and where it is from: "measured on <device>", "estimated" or "vendor-estimated"."""

    value: float
    provenance: str

    @property
    def estimated(self) -> bool:
        """Whether nothing measured it."""
        return self.provenance in ESTIMATES


@dataclass(frozen=True)
class Model:
    """One lowered file, dense or pruned; None where a number was neither measured nor estimated.

    Attributes:
        p50_ms: the latency that is compared; ``min_ms`` and ``p90_ms`` are of the same runs.
        first_run_ms: the first run after loading.
        load_ms: from the file to a ready method.
        peak_memory_mb, size_mb: MB are 10**6 bytes.
        score: on the test split; pruned: of the lowered file itself.
    """

    min_ms: Number | None
    p50_ms: Number | None
    p90_ms: Number | None
    first_run_ms: Number | None
    load_ms: Number | None
    peak_memory_mb: Number | None
    size_mb: Number | None
    score: Number | None


@dataclass(frozen=True)
class Comparison:
    """The pruned file's answers against the dense model's; a point is a hundredth of the score.

    Attributes:
        difference_points: pruned minus dense.
        interval_points: its paired 95% interval, (low, high); None if the task gives no scores
            per example.
        examples: how many the interval rests on.
        cosine: mean cosine of the first output to the dense one's.
    """

    difference_points: float
    interval_points: tuple[float, float] | None
    examples: int | None
    cosine: float | None


@dataclass(frozen=True)
class Source:
    """Where one of the profile's numbers is from: ``vendor``, ``measured`` or ``estimated``."""

    number: str
    origin: str
    source: str


@dataclass(frozen=True)
class Target:
    """The device that was built for.

    Attributes:
        estimated: whether costs are estimated from the profile: nothing was measured.
        note: what stands in for an accelerator that cannot be lowered to; None if nothing does.
    """

    name: str
    title: str
    soc: str
    runtime: str
    delegate: str
    precision: str
    accelerator: str
    estimated: bool
    note: str | None
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Bounds:
    """The budget as asked and in numbers; None where nothing was asked.

    Attributes:
        percentile: of the latency that ``latency_ms`` bounds.
        estimated: whether it is relative to a dense model that was only estimated.
    """

    asked: str
    latency_ms: float | None
    percentile: int
    peak_memory_mb: float | None
    size_mb: float | None
    min_score: float | None
    estimated: bool


@dataclass(frozen=True)
class Outcome:
    """How it ended: the verdict's status, why in one line (empty if all is well), every check."""

    status: Status
    reason: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Layer:
    """One residual sub-layer.

    Attributes:
        axis: of the units: "heads", "kv_groups", "ffn", "channels"…; None if it has no width.
        kept: numbers of the units that stay, ascending.
        total: units in the dense model.
        tokens_in, tokens_out: how many come in and go on; None if the model has no tokens.
        removed: whether the whole sub-layer is gone.
    """

    name: str
    axis: str | None
    kept: tuple[int, ...]
    total: int
    tokens_in: int | None
    tokens_out: int | None
    removed: bool


@dataclass(frozen=True)
class FrontPoint:
    """A plan on the solver's front, or one that was tried.

    Attributes:
        latency_ms: predicted, with the last correction.
        damage: predicted: the sum of the damages of its cuts, each measured alone.
        candidate: whether it was tried for real.
        score: of a candidate, on the validation split; None if it was not taken.
    """

    latency_ms: float
    damage: float
    chosen: bool
    candidate: bool
    score: float | None


@dataclass(frozen=True)
class Front:
    """What the solver found, and the proof of how good it is."""

    points: tuple[FrontPoint, ...]
    certificate: Certificate


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried; ``measured_ms`` is None without a device."""

    predicted_ms: float
    measured_ms: float | None
    damage: float
    score: float | None
    chosen: bool


@dataclass(frozen=True)
class Round:
    """One pass of solving and measuring.

    Attributes:
        correction: the factor on the table's latency, as known before the round.
        dense_ms: the dense model in the same measurement; None without a device.
    """

    correction: float
    bound_ms: float | None
    dense_ms: float | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Costs:
    """The cost table that predicted.

    Attributes:
        provenance: "measured", "estimated" or "vendor-estimated".
        date: when it was made, ISO 8601.
        anchors: how many whole models its scale was fitted to.
        error_pct: of its own fit, by name.
    """

    provenance: str
    date: str
    anchors: int
    error_pct: dict[str, float]


@dataclass(frozen=True)
class Recovery:
    """Distillation.

    Attributes:
        curve: (step, training loss).
        loss_before, loss_after: on held-out batches.
        improved: whether the trained weights were kept.
        score: of the trained program on the test split, before lowering; None where not taken.
    """

    curve: tuple[tuple[int, float], ...]
    seconds: float
    steps: int
    loss_before: float
    loss_after: float
    improved: bool
    score: float | None


@dataclass(frozen=True)
class Operator:
    """One kind of operator in one file: calls per run, and their time together."""

    name: str
    calls: int
    ms: float
    delegated: bool


@dataclass(frozen=True)
class Operators:
    """Time per operator, slowest first; empty without a device."""

    dense: tuple[Operator, ...]
    pruned: tuple[Operator, ...]


@dataclass(frozen=True)
class WhyNot:
    """Operators of the pruned file that stay on the CPU for one reason, and how many they are."""

    op: str
    reason: str
    count: int


@dataclass(frozen=True)
class Delegation:
    """How many of the pruned file's operators the delegate runs, and why not the others."""

    delegated: int
    operators: int
    why_not: tuple[WhyNot, ...]


@dataclass(frozen=True)
class Reproduce:
    """How to make it again, and how to know that it is the same.

    Attributes:
        plan: hash of the plan.
        file: the artifact's bare name.
    """

    command: str
    plan: str
    file: str
    sha256: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Stage:
    """A stage of the build; ``resumed``: its result was there already."""

    name: str
    seconds: float
    resumed: bool


@dataclass(frozen=True)
class Report:
    """Everything a build found.

    Attributes:
        title: the task's name.
        comparison, numerics: None where the file could not be run.
        recovery: None where nothing was distilled.
        state: the device during the measurement; None without one.
        flags: what speaks against the measured numbers.
    """

    title: str
    score_name: str
    licence: str
    target: Target
    bounds: Bounds
    outcome: Outcome
    dense: Model
    pruned: Model
    comparison: Comparison | None
    layers: tuple[Layer, ...]
    front: Front
    rounds: tuple[Round, ...]
    costs: Costs
    recovery: Recovery | None
    operators: Operators
    delegation: Delegation
    numerics: Numerics | None
    state: DeviceState | None
    flags: tuple[str, ...]
    reproduce: Reproduce
    stages: tuple[Stage, ...]

    @property
    def predicted(self) -> str:
        """What to call a latency that was not measured: "predicted", or by its provenance."""
        return self.costs.provenance if self.target.estimated else "predicted"

    @property
    def turns(self) -> dict[float, list[Candidate]]:
        """Correction of the table -> all plans solved for with it, in order."""
        found: dict[float, list[Candidate]] = {}
        for each in self.rounds:
            found.setdefault(each.correction, []).extend(each.candidates)
        return found

    def to_json(self) -> dict[str, Any]:
        """As stored in ``report.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Report:
        """The inverse of ``to_json``, also after a trip through JSON text.

        Raises:
            InputError: a field is missing, unknown or of another type; it is named.
        """
        fields = {key: value for key, value in body.items() if key not in ("format", "version")}
        report: Report = decode(cls, fields, "report")
        return report

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write ``report.json``."""
        return files.write_json(path, "report", self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Report:
        """Read a ``report.json``.

        Raises:
            InputError: missing, damaged, or from a newer edgeprune.
        """
        body = files.read_json(path, "report")
        try:
            return cls.from_json(body)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
