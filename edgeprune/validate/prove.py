"""Everything that must hold of a lowered file, checked once, at the end."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.budget import AbsoluteBudget
from edgeprune.devices import Device
from edgeprune.lower import Artifact
from edgeprune.program import Program
from edgeprune.task import Batch, Predict, Task
from edgeprune.validate.check import Check, bound_check
from edgeprune.validate.numerics import Numerics, check_numerics
from edgeprune.validate.scores import Scored, Scores, compare_scores, take_score
from edgeprune.validate.timing import Timing, check_latency, cost_checks
from edgeprune.validate.verdict import Predicted, Verdict, status_of

MAX_SCORE_LOSS = 0.01


@dataclass(frozen=True)
class Reference:
    """The uncut model, to which the pruned one is compared.

    Attributes:
        program: as captured.
        artifact: lowered by us, at the pruned file's precision.
        scored: its score on the test split, if that was read already.
    """

    program: Program
    artifact: Artifact
    scored: Scored | None = None


def validate(
    artifact: Artifact,
    device: Device | None,
    *,
    bounds: AbsoluteBudget,
    recovered: Program,
    dense: Reference,
    task: Task,
    timing: Timing | None = None,
    predicted: Predicted | None = None,
    runtime: Device | None = None,
) -> Verdict:
    """Check a lowered file: what it computes, how good it is, what it costs.

    Reads the task's test split, once each for the file, ``recovered`` and ``dense``.

    Args:
        device: the device the budget is for; None if it is not at hand.
        bounds: in numbers; ``Timing.resolve`` gives them for a budget relative to dense.
        recovered: the program that ``artifact`` was lowered from.
        timing: of this very file on ``device``, if it was measured already; measured again if
            it lacks the memory.
        predicted: shown where nothing was measured.
        runtime: where numerics and score are checked without ``device``, such as ``local``.

    Raises:
        InputError: the file is missing or cut short.
        EdgepruneError: its outputs are not those of the program at all.
    """
    if device is None:
        timing = None
    elif timing is None or timing.pruned.peak_memory_mb is None:
        timing = check_latency(
            artifact,
            device,
            dense.artifact,
            dense.program.example_inputs,
            fit=recovered.fit,
            memory=True,
        )
    checks = list(
        _predicted_checks(artifact, bounds, predicted)
        if timing is None
        else cost_checks(timing, bounds)
    )
    numerics = scores = None
    place = device or runtime
    if place is not None:
        numerics = check_numerics(artifact, place, recovered, task.calibration())
        scores = _scores(artifact, place, recovered, dense, task)
        checks = [*_numerics_checks(numerics), *checks, *_score_checks(scores, bounds)]
    if artifact.lowering.offload is not None:
        checks.insert(0, _accelerator_check(artifact))
    return Verdict(
        status=status_of(checks, timing is not None and not timing.emulated),
        checks=tuple(checks),
        numerics=numerics,
        scores=scores,
        timing=timing,
        predicted=predicted,
        sha256=artifact.sha256,
    )


def _scores(
    artifact: Artifact, device: Device, recovered: Program, dense: Reference, task: Task
) -> Scores:
    with device.predictor(artifact.runnable or artifact.path) as predict:
        file = take_score(task, lambda batch: predict(recovered.fit(batch)), "lowered file")
    from_program = take_score(task, _eager(recovered), "recovered program")
    whole = dense.scored or take_score(task, _eager(dense.program), "dense program")
    return compare_scores(task, file, from_program, whole)


def _eager(program: Program) -> Predict:
    def predict(inputs: Batch) -> Batch:
        outputs: Batch = program(*inputs)
        return outputs

    return predict


def _numerics_checks(numerics: Numerics) -> list[Check]:
    cosine = "mean cosine" if numerics.static else "lowest cosine of an example"
    what = (
        f"{cosine}, at least"
        if numerics.precision == "int8"
        else "largest difference relative to the largest output, at most"
    )
    given = " given the file's tokens" if numerics.selections else ""
    where = " before the accelerator's compiler" if numerics.static else ""
    note = f"{numerics.examples} calibration examples{where}, {what}{given}"
    checks = [Check("numerics", numerics.outputs_agree, numerics.worst, numerics.limit, note)]
    if numerics.selections:
        note = (
            f"{len(numerics.near_ties)} of {numerics.examples} examples keep other tokens than the "
            "program would; the largest gap between swapped scores, in typical scores"
        )
        margin, limit = numerics.worst_margin, numerics.margin_limit
        checks.append(Check("selection", numerics.selections_agree, margin, limit, note))
    return checks


def _accelerator_check(artifact: Artifact) -> Check:
    """Whether all that the accelerator runs is on it."""
    left = artifact.fallbacks
    note = f"operators on the CPU of kinds that {artifact.lowering.accelerator} runs"
    if left:
        note += ": " + "; ".join(f"{row.node}: {row.why_not}" for row in left[:3])
    return Check("on_accelerator", not left, len(left), 0, note)


def _score_checks(scores: Scores, bounds: AbsoluteBudget) -> list[Check]:
    least = scores.recovered - MAX_SCORE_LOSS
    note = f"{scores.name} of the file; at most 1 point below the program it was lowered from"
    floor = bounds.min_score
    return [
        # Scores are sums of rounded numbers: a loss of exactly one point is within it.
        Check("score_kept", scores.file >= least - 1e-9, scores.file, least, note),
        Check(
            "score_floor",
            None if floor is None else scores.file >= floor,
            scores.file,
            floor,
            f"{scores.name} of the file" + ("" if floor is not None else "; no floor"),
        ),
    ]


def _predicted_checks(
    artifact: Artifact, bounds: AbsoluteBudget, predicted: Predicted | None
) -> list[Check]:
    """What can be said without the device: the size is known, the rest at best foretold."""
    word = "no prediction"
    if predicted is not None:
        word = predicted.provenance
    latency = None if predicted is None else predicted.latency_ms
    memory = None if predicted is None else predicted.peak_memory_mb
    note = f"{word}, not measured"
    return [
        Check("latency_ms", None, latency, bounds.latency_ms, f"p{bounds.percentile}, {note}"),
        Check("peak_memory_mb", None, memory, bounds.peak_memory_mb, note),
        bound_check("size_mb", artifact.size_bytes / 1e6, bounds.size_mb, "of the file"),
        Check("faster_than_dense", None, None, None, "not measured"),
    ]
