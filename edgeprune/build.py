"""The pipeline, top to bottom: one function a stage, one folder with all results."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from edgeprune import console, files
from edgeprune.budget import AbsoluteBudget, Budget
from edgeprune.cost import CostTable, estimate_costs, measure_costs
from edgeprune.devices import (
    Device,
    OperatorTime,
    Workload,
    connect,
    read_measurement,
    write_measurement,
)
from edgeprune.errors import InputError
from edgeprune.formulate import Choices, choices_of, token_levels
from edgeprune.importance import DEFAULT, Damage, Evidence, measure_damage, rank_units
from edgeprune.lower import Artifact, lower, write_delegation
from edgeprune.lower.artifact import Precision
from edgeprune.lower.manifest import manifest, write_manifest
from edgeprune.plan import Plan
from edgeprune.profile import Profile, load_profile
from edgeprune.program import Program, capture
from edgeprune.recover import Distilled, distil, refit
from edgeprune.report import compose, write_report
from edgeprune.search import Search, SearchResult
from edgeprune.sites import Sites, find_sites
from edgeprune.stages import Stages
from edgeprune.task import Batch, Task, check_task, load_task
from edgeprune.validate import Predicted, Reference, Scored, Verdict, take_score, validate
from edgeprune.validate.timing import MB_PER_MIB, check_latency

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
# Of 1e-4, 3e-4 and 1e-3 the best after 150 steps on MiniLM.
LEARNING_RATE = 3e-4


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))

    @property
    def measured_on(self) -> str | None:
        """The device that measures; None where the profile's is not at hand."""
        return self.device or ("local" if self.profile == "host" else None)


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


@dataclass(frozen=True)
class Planned:
    """A build up to its plan: all that the later stages read."""

    profile: Profile
    budget: Budget
    calibration: tuple[Batch, ...]
    search: Search
    found: SearchResult
    dense: Artifact


def build(task: Task | str, **named: Any) -> BuildResult:
    """Cut a task's model to a budget and prove it on the device.

    Every stage's result is kept in the build folder under a hash of what it depends on; the same
    call again continues from the last finished one.

    Args:
        task: its object, a built-in one's name, or ``"path.py:ClassName"``.
        named: the fields of :class:`Settings`.

    Raises:
        InputError: wrong task, profile, budget or folder.
        InfeasibleError: no plan meets the budget; says which bound and what is reachable.
    """
    settings = Settings(**named)
    stages = Stages(settings.out, STAGES)
    with _device(settings) as device:
        planned = _planned(task, settings, stages, device)
        search, found, dense = planned.search, planned.found, planned.dense
        with stages.stage("recover"):
            slim, distilled = recover_stage(
                stages, search.sites, found.plan, search.task, planned.calibration, settings
            )
        with stages.stage("lower"):
            artifact = lower_stage(slim, found.plan, planned.profile, search.precision, settings)
        with stages.stage("validate"):
            verdict = validate_stage(stages, planned, slim, artifact, settings)
            files_ = {"dense": dense, "pruned": artifact}
            operators = _operators(device, search.sites.program, files_)
    report = compose(
        search=search,
        found=found,
        verdict=verdict,
        profile=planned.profile,
        budget=planned.budget,
        artifact=artifact,
        distilled=distilled,
        operators=operators,
        stages=stages.times,
        command=command_of(settings, search.task, planned.budget, search.precision),
    )
    write_report(report, settings.out)
    _conclude(verdict, settings)
    return BuildResult(settings.out, verdict, found, artifact)


def plan(task: Task | str, **named: Any) -> SearchResult:
    """The stages of a build up to the plan; ``build`` with the same settings goes on from it.

    Raises:
        InputError, InfeasibleError: as :func:`build`.
    """
    settings = Settings(**named)
    stages = Stages(settings.out, STAGES[: STAGES.index("solve") + 1])
    with _device(settings) as device:
        return _planned(task, settings, stages, device).found


def _planned(
    task: Task | str, settings: Settings, stages: Stages, device: Device | None
) -> Planned:
    torch.manual_seed(settings.seed)
    with stages.stage("profile"):
        task = load_task(task) if isinstance(task, str) else task
        profile, budget, precision = profile_stage(settings)
    with stages.stage("capture"):
        program, calibration = capture_stage(task)
    with stages.stage("sites"):
        sites = sites_stage(program, settings.out)
        choices = choices_of(sites, profile.multiples)
        levels = token_levels(sites, profile.multiples)
    with stages.stage("score"):
        damage = score_stage(stages, sites, choices, levels, calibration, settings)
    with stages.stage("cost"):
        table = cost_stage(sites, profile, precision, device, levels, settings)
        dense, bounds = dense_stage(stages, sites, table, precision, device, budget)
    with stages.stage("solve"):
        search = Search(
            *(sites, choices, levels, damage, table, bounds, task),
            calibration=first_examples(calibration, SCORED_EXAMPLES),
            precision=precision,
            device=device,
            dense=dense.path,
            folder=stages.folder,
            solver=settings.solver,
        )
        found = solve_stage(stages, search, settings)
    return Planned(profile, budget, calibration, search, found, dense)


def profile_stage(settings: Settings) -> tuple[Profile, Budget, Precision]:
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
    sites: Sites,
    profile: Profile,
    precision: Precision,
    device: Device | None,
    levels: tuple[int, ...],
    settings: Settings,
) -> CostTable:
    """What every piece costs on the device, written to ``table.json``."""
    if device is None:
        console.say("  no device at hand: costs are estimated from the profile")
        table = estimate_costs(sites, profile, precision)
    else:
        table = measure_costs(sites, device, precision, tokens=levels, seed=settings.seed)
    table.write(settings.out / "table.json")
    return table


def dense_stage(
    stages: Stages,
    sites: Sites,
    table: CostTable,
    precision: Precision,
    device: Device | None,
    budget: Budget,
) -> tuple[Artifact, AbsoluteBudget]:
    """The uncut model as a file, and the budget in numbers, given what that file costs."""
    program = sites.program
    path = stages.path("dense", program.fingerprint, precision, suffix=".pte")
    artifact = lower(program, path, precision)
    if device is None:
        guess = table.predict(sites, Plan(program.fingerprint))
        costs = (guess.latency_ms, guess.peak_memory_mb, guess.size_mb)
        word = "estimated"
    else:
        workload = Workload("dense", path, example_of(program))
        # Kept, because the budget in numbers follows from it: a resumed build asks the same.
        found = stages.keep(
            stages.path("dense", program.fingerprint, precision, table.hash, suffix=".json"),
            lambda: device.measure([workload], rounds=DENSE_ROUNDS, memory=True)["dense"],
            lambda measured, file: write_measurement(file, measured),
            read_measurement,
        )
        costs = (found.p50_ms, found.peak_memory_mb or 0.0, found.file_size_mb)
        word = "measured"
    # A share of the latency is solved for in the table's own milliseconds.
    bounds = budget.resolve(table.dense_ms, costs[1] * MB_PER_MIB, costs[2] * MB_PER_MIB)
    console.say(
        f"  dense, {word}: {costs[0]:.2f} ms, {costs[1] * MB_PER_MIB:.0f} MB of memory, "
        f"{costs[2] * MB_PER_MIB:.1f} MB file"
    )
    return artifact, bounds


def solve_stage(stages: Stages, search: Search, settings: Settings) -> SearchResult:
    """The plan, written to ``plan.json`` with its certificate."""
    open_ = [
        (c.residual.name, [o.units for o in c.options], c.stream is not None)
        for c in search.choices
    ]
    key = (search.damage.to_json(), search.table.hash, asdict(search.bounds), search.solver, open_)
    found = stages.keep(
        stages.path("search", *key, search.precision, suffix=".json"),
        search.run,
        lambda result, path: files.write_json(path, "search", result.to_json()),
        lambda path: SearchResult.from_json(files.read_json(path, "search")),
    )
    chosen = found.chosen
    found.plan.write(
        settings.out / "plan.json",
        predicted={"latency_ms": chosen.predicted_ms, "damage": chosen.damage},
        certificate=asdict(chosen.certificate) | {"weights": dict(chosen.weights)},
    )
    word = "predicted" if chosen.measured_ms is None else "measured"
    console.say(f"  chosen: {chosen.measured_ms or chosen.predicted_ms:.2f} ms {word}")
    return found


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
    batches = task.train_batches() if settings.recover_minutes else None
    if batches is None:
        console.say(
            "  no distillation: "
            + (
                "the task gives no training batches"
                if settings.recover_minutes
                else "recover_minutes is 0"
            )
        )
        distilled, program = None, refitted
    else:
        distilled = distil(
            refitted,
            sites.program,
            batches,
            steps=settings.recover_steps,
            minutes=settings.recover_minutes,
            learning_rate=LEARNING_RATE,
            seed=settings.seed,
            checkpoint=stages.path("distilled", *key, settings.recover_minutes, suffix=".ckpt"),
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
    precision: Precision,
    settings: Settings,
) -> Artifact:
    """``model.pte`` with its delegation list and manifest."""
    out = settings.out
    artifact = lower(recovered, out / "model.pte", precision, profile.runtime)
    delegation = write_delegation(out / "delegation.csv", artifact.delegation)
    body = manifest(
        artifact, plan.hash, profile.name, recovered.meta, [out / "plan.json", delegation]
    )
    write_manifest(out / "manifest.json", body)
    share = artifact.delegated_nodes / max(1, len(artifact.delegation))
    size = artifact.size_bytes / 1e6
    console.say(f"  model.pte: {size:.1f} MB, {100 * share:.0f}% of operators delegated")
    return artifact


def validate_stage(
    stages: Stages,
    planned: Planned,
    slim: Program,
    artifact: Artifact,
    settings: Settings,
) -> Verdict:
    """The verdict on the lowered file, written to ``verdict.json``.

    A relative budget is judged against the dense file measured in turns with the pruned one.
    """
    search, found, dense = planned.search, planned.found, planned.dense
    task, program, device = search.task, search.sites.program, search.device
    path = stages.path("dense-score", program.fingerprint, task.name, suffix=".pt")
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
    timing = None
    if device is not None:
        timing = check_latency(artifact, device, dense, slim.example_inputs, memory=True)
    with contextlib.ExitStack() as stack:
        # The file can be checked here even where its speed cannot be measured.
        runtime = device or stack.enter_context(connect("local"))
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
    verdict.write(settings.out)
    return verdict


def command_of(settings: Settings, task: Task, budget: Budget, precision: Precision) -> str:
    """How to make it again; without folders, which are nobody else's business."""
    words = [f"--profile {Path(settings.profile).name}", f"--task {task.name}"]
    words += [f"--budget {budget}", f"--precision {precision}", f"--seed {settings.seed}"]
    words += [f"--recover-minutes {settings.recover_minutes:g}"]
    return " ".join(("edgeprune build", *words))


def _operators(
    device: Device | None, program: Program, artifacts: dict[str, Artifact]
) -> dict[str, Sequence[OperatorTime]]:
    if device is None:
        return {}
    example = example_of(program)
    return {
        name: device.profile(Workload(name, artifact.path, example))
        for name, artifact in artifacts.items()
    }


def _conclude(verdict: Verdict, settings: Settings) -> None:
    """The last lines of a build: what came out, and where to look."""
    if verdict.timing is not None:
        pruned, dense = verdict.timing.pruned.p50_ms, verdict.timing.dense.p50_ms
        console.say(f"  {dense:.2f} ms to {pruned:.2f} ms ({100 * pruned / dense:.0f}%), measured")
    if verdict.scores is not None:
        name, before, after = verdict.scores.name, verdict.scores.dense, verdict.scores.file
        console.say(f"  {name} {100 * before:.2f} to {100 * after:.2f} on the test split")
    console.say(f"verdict: {verdict.status}" + (f" ({verdict.reason})" if verdict.reason else ""))
    console.say(f"see {settings.out / 'report.html'}")


def first_examples(batches: tuple[Batch, ...], count: int) -> tuple[Batch, ...]:
    """The first batches that hold ``count`` examples; all of them if there are fewer."""
    taken: list[Batch] = []
    for batch in batches:
        if sum(len(each[0]) for each in taken) >= count:
            break
        taken.append(batch)
    return tuple(taken)


def batches_hash(batches: tuple[Batch, ...]) -> str:
    """Identifies calibration data without keeping it."""
    parts = [
        hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for b in batches for t in b
    ]
    return files.content_hash(parts)


def example_of(program: Program) -> Batch:
    """One example, as a lowered file takes it."""
    return tuple(each[:1] for each in program.example_inputs)


def _spread(levels: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the levels, evenly, both ends among them."""
    if len(levels) <= count:
        return list(levels)
    return [levels[round(i * (len(levels) - 1) / (count - 1))] for i in range(count)]


@contextlib.contextmanager
def _device(settings: Settings) -> Iterator[Device | None]:
    name = settings.measured_on
    if name is None:
        yield None
        return
    with connect(name, threads=settings.threads) as device:
        yield device
