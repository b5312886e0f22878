"""The pipeline, top to bottom: one function a stage, one folder with all results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgeprune import console, files
from edgeprune.budget import AbsoluteBudget, Budget
from edgeprune.cost import CostTable, estimate_costs, measure_costs
from edgeprune.devices import Device, Measurement, Workload, connect
from edgeprune.errors import InputError
from edgeprune.formulate import Choices, choices_of, token_levels, width_levels
from edgeprune.importance import DEFAULT, Damage, Evidence, measure_damage, rank_units
from edgeprune.lower import Artifact, lower
from edgeprune.lower.artifact import Precision
from edgeprune.profile import Profile, load_profile
from edgeprune.program import Program, capture
from edgeprune.recover import Distilled, distil, refit
from edgeprune.search import Search, SearchResult
from edgeprune.sites import Sites, find_sites
from edgeprune.stages import Stages
from edgeprune.task import Batch, Task, check_task, load_task

STAGES = (
    "profile",
    "capture",
    "sites",
    "score",
    "cost",
    "solve",
    "recover",
    "lower",
    "validate",
)
# Damage is a ratio of sums over examples: 64 place it within a few percent, and every further
# one costs a forward pass per measured cut.
SCORED_EXAMPLES = 64
MEASURED_WIDTHS = 8
MEASURED_TOKENS = 6
DENSE_ROUNDS = 50


@dataclass(frozen=True)
class Settings:
    """What a build is told; the same words as the flags and the keys of ``edgeprune.toml``.

    Attributes:
        budget: None takes the profile's.
        precision: None takes the profile's.
        device: "local", or None: the profile's device is not at hand.
        threads: of the runtime on the device.
        recover_minutes: of distillation; 0 leaves the least-squares refit alone.
        recover_steps: of distillation, if that is fewer.
    """

    profile: str
    budget: str | None = None
    out: Path = Path("build")
    precision: Precision | None = None
    device: str | None = None
    threads: int = 1
    seed: int = 0
    criterion: str = DEFAULT
    solver: str = "auto"
    recover_minutes: float = 12.0
    recover_steps: int = 4000


@dataclass(frozen=True)
class Dense:
    """The uncut model on the device: the yardstick.

    Attributes:
        measurement: None without a device.
        latency_ms, peak_memory_mb, size_mb: measured, or estimated from the profile.
    """

    artifact: Artifact
    measurement: Measurement | None
    latency_ms: float
    peak_memory_mb: float
    size_mb: float


@dataclass(frozen=True)
class BuildResult:
    """What a build made, and where.

    Attributes:
        out: the build folder.
        exit_code: of the design: 0 budget met, 4 over budget, 5 below the score floor, 6 not
            measured, 1 refused.
    """

    out: Path
    verdict: Verdict
    search: SearchResult
    artifact: Artifact

    @property
    def exit_code(self) -> int:
        """As the command ends."""
        return self.verdict.exit_code


def build(task: Task | str, settings: Settings) -> BuildResult:
    """Cut a task's model to a budget and prove it on the device.

    Every stage's result is kept in ``settings.out`` under a hash of what it depends on; the same
    call again continues from the last finished one.

    Raises:
        InputError: wrong task, profile, budget or folder.
        InfeasibleError: no plan meets the budget; says which bound and what is reachable.
    """
    torch.manual_seed(settings.seed)
    stages = Stages(settings.out, STAGES)
    with stages.stage("profile"):
        task = load_task(task) if isinstance(task, str) else task
        profile, budget, precision = read_profile_stage(settings)
    with _device(settings) as device:
        with stages.stage("capture"):
            program, calibration = capture_stage(task)
        with stages.stage("sites"):
            sites = sites_stage(program, settings.out)
            choices = choices_of(sites, profile.multiples)
            levels = token_levels(sites, profile.multiples)
        with stages.stage("score"):
            damage = score_stage(stages, sites, choices, levels, calibration, settings)
        with stages.stage("cost"):
            table, dense = cost_stage(stages, sites, profile, precision, device, settings)
            bounds = budget.resolve(dense.latency_ms, dense.peak_memory_mb, dense.size_mb)
        with stages.stage("solve"):
            search = Search(
                sites, choices, levels, damage, table, bounds, task, calibration, precision,
                device, dense.artifact.path, stages.folder, settings.solver,
            )
            found = solve_stage(stages, search, settings)
        with stages.stage("recover"):
            recovered, recovery = recover_stage(stages, sites, found, task, calibration, settings)
        with stages.stage("lower"):
            artifact = lower_stage(recovered, found, profile, precision, settings)
        with stages.stage("validate"):
            verdict = validate_stage(...)
    return BuildResult(settings.out, verdict, found, artifact)


def read_profile_stage(settings: Settings) -> tuple[Profile, Budget, Precision]:
    """The device, what is asked of it, and the number format."""
    profile = load_profile(settings.profile)
    budget = Budget.parse(settings.budget) if settings.budget else profile.budget
    note = profile.lowering_note()
    if note:
        console.say(f"  {note}")
    if profile.estimated:
        console.say(f"  {profile.name}: speeds are not measured; every prediction is an estimate")
    precision: Precision = settings.precision or profile.precision  # type: ignore[assignment]
    console.say(f"  {profile.title}, {profile.runtime} + {profile.delegate}, {precision}, {budget}")
    return profile, budget, precision


def capture_stage(task: Task) -> tuple[Program, tuple[Batch, ...]]:
    """The program and the calibration batches."""
    check_task(task)
    program = capture(
        task.model(),
        task.example_inputs(),
        input_names=task.input_names,
        output_names=task.output_names,
        meta={"licence": task.licence, "preprocessing": task.preprocessing},
    )
    console.say(f"  {task.name}: {program.parameters / 1e6:.1f} M parameters ({task.licence})")
    return program, tuple(task.calibration())


def sites_stage(program: Program, out: Path) -> Sites:
    """What can be cut, written to ``sites.json``."""
    sites = find_sites(program)
    sites.write(out / "sites.json")
    if not sites.cuttable:
        reasons = "; ".join(f"{s.name}: {s.why_not}" for s in sites.sites[:5]) or "no weights found"
        raise InputError(f"nothing in this model can be cut. {reasons}. See sites.json.")
    counts: dict[str, int] = {}
    for site in sites.cuttable:
        counts[site.axis] = counts.get(site.axis, 0) + 1
    console.say("  " + ", ".join(f"{count} x {axis}" for axis, count in counts.items()))
    return sites


def score_stage(
    stages: Stages,
    sites: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    calibration: tuple[Batch, ...],
    settings: Settings,
) -> Damage:
    """Every unit ranked, and the damage of every site measured alone."""
    batches = first_examples(calibration, SCORED_EXAMPLES)
    widths = {
        site.name: _spread([o.units for o in options if 0 < o.units < site.units], MEASURED_WIDTHS)
        for site, options in ((choice.site, choice.options) for choice in choices)
        if site
    }
    tokens = _spread(levels[1:], MEASURED_TOKENS)
    key = (sites.program.fingerprint, batches_hash(batches), settings.criterion, widths, tokens)

    def measure() -> Damage:
        evidence = Evidence(sites, batches, settings.seed)
        orders = rank_units(evidence, settings.criterion)
        return measure_damage(evidence, orders, widths, tokens)

    return stages.keep(
        stages.path("damage", *key, settings.seed, suffix=".json"),
        measure,
        lambda damage, path: files.write_json(path, "damage", damage.to_json()),
        lambda path: Damage.from_json(files.read_json(path, "damage")),
    )


def cost_stage(
    stages: Stages,
    sites: Sites,
    profile: Profile,
    precision: Precision,
    device: Device | None,
    settings: Settings,
) -> tuple[CostTable, Dense]:
    """What every piece costs on the device, and the dense model as a whole."""
    if device is None:
        table = estimate_costs(sites, profile, precision)
        console.say("  no device at hand: costs are estimated from the profile")
    else:
        table = measure_costs(sites, device, precision, seed=settings.seed)
    files.write_json(settings.out / "table.json", "table", table.to_json())
    return table, _dense(stages, sites, table, precision, device)


def _dense(
    stages: Stages,
    sites: Sites,
    table: CostTable,
    precision: Precision,
    device: Device | None,
) -> Dense:
    program = sites.program
    path = stages.path("dense", program.fingerprint, precision, suffix=".pte")
    artifact = lower(program, path, precision)
    if device is None:
        guess = table.predict(sites, Plan(program.fingerprint))
        return Dense(artifact, None, guess.latency_ms, guess.peak_memory_mb, guess.size_mb)
    workload = Workload("dense", path, example_of(program))
    measured = device.measure([workload], rounds=DENSE_ROUNDS, memory=True)["dense"]
    assert measured.peak_memory_mb is not None
    console.say(f"  dense: {measured.p50_ms:.2f} ms, {measured.peak_memory_mb:.0f} MB measured")
    return Dense(
        artifact, measured, measured.p50_ms, measured.peak_memory_mb, measured.file_size_mb
    )


def solve_stage(stages: Stages, search: Search, settings: Settings) -> SearchResult:
    """The plan, written to ``plan.json`` with its certificate."""
    key = (search.damage.to_json(), search.table.hash, asdict(search.bounds), search.solver)
    found = stages.keep(
        stages.path("search", *key, search.precision, suffix=".json"),
        search.run,
        lambda result, path: files.write_json(path, "search", result.to_json()),
        lambda path: SearchResult.from_json(files.read_json(path, "search")),
    )
    chosen, solution = found.chosen, found.solution
    found.plan.write(
        settings.out / "plan.json",
        predicted={"latency_ms": chosen.predicted_ms, "damage": chosen.damage},
        certificate=asdict(solution.certificate),
    )
    word = "predicted" if chosen.measured_ms is None else "measured"
    console.say(f"  chosen: {chosen.measured_ms or chosen.predicted_ms:.2f} ms {word}")
    return found


def recover_stage(
    stages: Stages,
    sites: Sites,
    found: SearchResult,
    task: Task,
    calibration: tuple[Batch, ...],
    settings: Settings,
) -> tuple[Program, Distilled | None]:
    """The cut program, refitted, and distilled when the task gives training batches."""
    batches = task.train_batches() if settings.recover_minutes else None
    key = (
        found.plan.hash,
        batches_hash(calibration),
        settings.seed,
        (settings.recover_minutes, settings.recover_steps) if batches else None,
    )
    path = stages.path("recovered", *key, suffix=".pt2")
    ...
