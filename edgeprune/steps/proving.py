"""After the plan: the stages that make the file and prove it, one function each."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace

import torch

from edgeprune import console, files
from edgeprune.candidates import SearchResult, corrections
from edgeprune.devices import Device, OperatorTime, Workload, connect
from edgeprune.errors import InfeasibleError
from edgeprune.lower import Artifact, lower, write_delegation
from edgeprune.lower.lowering import RUNTIMES, Lowering
from edgeprune.lower.manifest import manifest, write_manifest
from edgeprune.plan import Plan
from edgeprune.profile import Profile
from edgeprune.program import Program
from edgeprune.recover import Distilled, distil, refit
from edgeprune.search import ROUNDS, with_costs
from edgeprune.settings import Settings
from edgeprune.sites import Sites
from edgeprune.stages import Stages
from edgeprune.steps.planning import (
    Planned,
    batches_hash,
    example_of,
    say_fallbacks,
    write_plan,
)
from edgeprune.task import Batch, Task, train_batches
from edgeprune.validate import Predicted, Reference, Scored, Verdict, take_score, validate
from edgeprune.validate.timing import MB_PER_MIB, Timing, check_latency, over_budget

# Of distillation, where time allows more: a small model has long learned all it can.
MOST_STEPS = 4000


def recover_stage(
    stages: Stages,
    sites: Sites,
    plan: Plan,
    task: Task,
    calibration: tuple[Batch, ...],
    settings: Settings,
) -> tuple[Program, Distilled | None]:
    """The cut program, refitted, and distilled when the task gives training batches."""
    key = (plan.hash, sites.program.fingerprint, batches_hash(calibration))
    refitted = stages.keep(
        stages.path("refitted", *key, suffix=".pt2"),
        lambda: refit(sites, plan, calibration),
        lambda program, path: program.save(path),
        Program.load,
    )
    refitted = replace(
        refitted,
        example_inputs=refitted.fit(sites.program.example_inputs),
        input_names=sites.program.input_names,
        output_names=sites.program.output_names,
        meta=sites.program.meta,
    )
    batches = train_batches(task) if settings.distils else None
    if batches is None:
        why = "the task gives no training batches" if settings.distils else "not asked for"
        console.say(f"  no distillation: {why}")
        distilled, program = None, refitted
    else:
        steps = settings.recover_steps
        minutes = None if steps else settings.recover_minutes
        distilled = distil(
            refitted,
            sites.program,
            batches,
            steps=steps or MOST_STEPS,
            minutes=minutes,
            seed=settings.seed,
            checkpoint=stages.path("distilled", *key, steps, minutes, suffix=".ckpt"),
        )
        program = distilled.program
        console.say(
            f"  distilled {distilled.steps} steps: loss {distilled.loss_before:.3f} "
            f"to {distilled.loss_after:.3f}"
        )
    program.save(settings.out / "slim.pt2")
    return program, distilled


def lower_stage(
    recovered: Program,
    plan: Plan,
    profile: Profile,
    lowering: Lowering,
    settings: Settings,
    calibration: tuple[Batch, ...] = (),
) -> Artifact:
    """``model.pte`` or ``model.tflite`` with its delegation list and manifest."""
    out = settings.out
    for other in RUNTIMES.values():  # of an earlier build here
        for stale in out.glob(f"model*{other.suffix}"):
            stale.unlink()
    artifact = lower(recovered, out / f"model{lowering.suffix}", lowering, calibration)
    say_fallbacks(artifact)
    delegation = write_delegation(out / "delegation.csv", artifact.delegation)
    body = manifest(
        artifact, plan.hash, profile.name, recovered.meta, [out / "plan.json", delegation]
    )
    write_manifest(out / "manifest.json", body)
    share = artifact.delegated_nodes / max(1, len(artifact.delegation))
    size = artifact.size_bytes / 1e6
    console.say(f"  {artifact.path.name}: {size:.1f} MB, {100 * share:.0f}% of operators delegated")
    return artifact


def timing_stage(
    stages: Stages, planned: Planned, slim: Program, artifact: Artifact
) -> Timing | None:
    """The finished file and the dense one, measured in turns; None without a device."""
    search, dense = planned.search, planned.dense
    device, example = search.device, search.sites.program.example_inputs
    if device is None:
        return None
    state = device.state()
    key = (artifact.sha256, dense.sha256, device.name, state.cpu_model, state.threads)
    return stages.keep(
        stages.path("timing", *key, suffix=".json"),
        lambda: check_latency(artifact, device, dense, example, fit=slim.fit, memory=True),
        lambda timing, path: files.write_json(path, "timing", timing.to_json()),
        lambda path: Timing.from_json(files.read_json(path, "timing")),
    )


def solve_again_stage(
    stages: Stages, planned: Planned, artifact: Artifact, timing: Timing | None, settings: Settings
) -> Planned | None:
    """The loop closed by the finished file: another plan, where it is over budget.

    None where it is not, where the rounds are spent, and where no other plan is within budget.
    """
    search, found = planned.search, planned.found
    if timing is None:
        return None
    bounds = timing.resolve(planned.budget)
    if not over_budget(timing, bounds):
        return None
    if len(corrections(found.rounds)) >= ROUNDS:
        console.say(f"  over budget, and the table was corrected {ROUNDS - 1} times already")
        return None
    finished = with_costs(found.chosen, timing.pruned, bounds.percentile)
    try:
        other = stages.keep(
            stages.path("search", artifact.sha256, asdict(bounds), suffix=".json"),
            lambda: search.again(found, finished, bounds.latency_ms),
            lambda result, path: files.write_json(path, "search", result.to_json()),
            lambda path: SearchResult.from_json(files.read_json(path, "search")),
        )
    except InfeasibleError as error:
        console.say(f"  the plan stays: {error}")
        return None
    if other.chosen.score is None:
        console.say("  the plan stays: none that was measured is within the budget")
        return None
    write_plan(search, other, settings)
    return replace(planned, found=other)


def validate_stage(
    stages: Stages,
    planned: Planned,
    slim: Program,
    artifact: Artifact,
    timing: Timing | None,
    settings: Settings,
) -> Verdict:
    """The verdict on the lowered file, written to ``verdict.json``.

    A relative budget is judged against the dense file measured in turns with the pruned one.

    Args:
        timing: as of ``timing_stage``.
    """
    search, found, dense = planned.search, planned.found, planned.dense
    task, program, device = search.task, search.sites.program, search.device
    path = stages.path("dense-score", program.fingerprint, task.content_hash(), suffix=".pt")
    scored = stages.keep(
        path,
        lambda: take_score(task, lambda batch: program(*batch), "dense program"),
        lambda result, out: files.write_torch(out, asdict(result)),
        lambda out: Scored(**torch.load(out)),
    )
    cost = search.table.predict(search.sites, found.plan)
    predicted = Predicted(
        found.chosen.predicted_ms, cost.peak_memory_mb * MB_PER_MIB, estimated=device is None
    )
    if artifact.estimate is not None:
        memory_mb = (artifact.size_bytes + artifact.estimate.arena_bytes) / 1e6
        predicted = Predicted(artifact.estimate.latency_ms, memory_mb, estimated=True, vendor=True)
    with contextlib.ExitStack() as stack:
        # The file can be checked here even where its speed cannot be measured.
        here = artifact.runnable is not None
        runtime = device or (stack.enter_context(connect("local")) if here else None)
        verdict = validate(
            artifact,
            device,
            bounds=timing.resolve(planned.budget) if timing else search.bounds,
            recovered=slim,
            dense=Reference(program, dense, scored),
            task=task,
            timing=timing,
            predicted=predicted,
            runtime=runtime,
        )
    verdict = replace(verdict, turns=found.turns)
    verdict.write(settings.out)
    return verdict


def operators_of(
    device: Device | None, lowered: dict[str, tuple[Program, Artifact]]
) -> dict[str, tuple[OperatorTime, ...]]:
    """Time per operator of each program's file; none without a device."""
    if device is None:
        return {}
    loads = [
        Workload(name, artifact.path, example_of(program))
        for name, (program, artifact) in lowered.items()
    ]
    return device.profile(loads)
