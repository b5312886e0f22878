"""The pipeline, top to bottom: nine stages, one folder with all results."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeprune import console, files
from edgeprune.candidates import SearchResult
from edgeprune.cluster import Cluster, open_cluster
from edgeprune.config import RESOLVED
from edgeprune.devices import Device, OperatorTime
from edgeprune.formulate import choices_of, token_levels
from edgeprune.lower import Artifact
from edgeprune.recover import Distilled
from edgeprune.report import compose, write_report
from edgeprune.search import Search
from edgeprune.settings import Settings
from edgeprune.stages import Stages
from edgeprune.steps import (
    Planned,
    capture_stage,
    cost_stage,
    dense_stage,
    lower_stage,
    operators_of,
    profile_stage,
    recover_stage,
    score_stage,
    scored_examples,
    sites_stage,
    solve_again_stage,
    solve_stage,
    timing_stage,
    validate_stage,
)
from edgeprune.task import Task, check_labels, load_task
from edgeprune.toml import toml_value
from edgeprune.validate import Verdict

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

# What a build ends with; a folder without them is not finished.
CONCLUSIONS = ("verdict.json", "measurement.json", "report.html", "report.json", RESOLVED)


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
    with _opened(settings, STAGES) as (stages, cluster, device):
        planned = _planned(task, settings, stages, cluster, device)
        proved = _proved(planned, settings, stages)
    planned, artifact, verdict = proved.planned, proved.artifact, proved.verdict
    search, found = planned.search, planned.found
    report = compose(
        search=search,
        found=found,
        verdict=verdict,
        profile=planned.profile,
        budget=planned.budget,
        artifact=artifact,
        distilled=proved.distilled,
        operators=proved.operators,
        stages=stages.times,
        command=command_of(planned, proved.distilled, settings),
    )
    write_report(report, settings.out)
    _write_resolved(planned, settings)
    _conclude(verdict, settings)
    return BuildResult(settings.out, verdict, found, artifact)


@dataclass(frozen=True)
class _Proved:
    planned: Planned
    distilled: Distilled | None
    artifact: Artifact
    verdict: Verdict
    operators: dict[str, tuple[OperatorTime, ...]]


def _proved(planned: Planned, settings: Settings, stages: Stages) -> _Proved:
    """The plan's finished file with its verdict; over budget, that of the next plan."""
    while True:
        search, found = planned.search, planned.found
        with stages.stage("recover"):
            slim, distilled = recover_stage(
                stages, search.sites, found.plan, search.task, planned.calibration, settings
            )
        with stages.stage("lower"):
            artifact = lower_stage(
                *(slim, found.plan, planned.profile, search.lowering, settings),
                planned.calibration,
            )
        with stages.stage("validate"):
            timing = timing_stage(stages, planned, slim, artifact)
            other = solve_again_stage(stages, planned, artifact, timing, settings)
            if other is None:
                verdict = validate_stage(stages, planned, slim, artifact, timing, settings)
                dense = (search.sites.program, planned.dense)
                lowered = {"dense": dense, "pruned": (slim, artifact)}
                operators = operators_of(search.device, lowered)
                return _Proved(planned, distilled, artifact, verdict, operators)
        planned = other


def plan(task: Task | str, **named: Any) -> SearchResult:
    """The stages of a build up to the plan; ``build`` with the same settings goes on from it.

    Raises:
        InputError, InfeasibleError: as :func:`build`.
    """
    settings = Settings(**named)
    names = STAGES[: STAGES.index("solve") + 1]
    with _opened(settings, names) as (stages, cluster, device):
        return _planned(task, settings, stages, cluster, device).found


def _planned(
    task: Task | str,
    settings: Settings,
    stages: Stages,
    cluster: Cluster,
    device: Device | None,
) -> Planned:
    torch.manual_seed(settings.seed)
    with stages.stage("profile"):
        task = load_task(task) if isinstance(task, str) else task
        profile, budget, lowering = profile_stage(settings, device)
    with stages.stage("capture"):
        program, calibration = capture_stage(task)
    with stages.stage("sites"):
        sites = sites_stage(program, settings.out)
        choices = choices_of(sites, profile.multiples, lowering.axes)
        levels = token_levels(sites, profile.multiples)
        levels = levels if "length" in lowering.axes else levels[:1]
    with stages.stage("score"):
        labels = check_labels(task, calibration)
        damage = score_stage(stages, sites, choices, levels, calibration, settings, cluster, labels)
    with stages.stage("cost"):
        table = cost_stage(sites, profile, lowering, device, levels, settings)
        dense, bounds = dense_stage(stages, sites, table, lowering, device, budget, calibration)
    with stages.stage("solve"):
        search = Search(
            *(sites, choices, levels, damage, table, bounds, task),
            calibration=scored_examples(sites, calibration),
            lowering=lowering,
            device=device,
            dense=dense.path,
            folder=stages.folder,
            solver=settings.solver,
            trial_steps=settings.trial_steps,
            trial_minutes=settings.trial_minutes,
            seed=settings.seed,
            cluster=cluster,
        )
        for name in CONCLUSIONS:  # of an earlier build here: of another plan
            (settings.out / name).unlink(missing_ok=True)
        found = solve_stage(stages, search, settings)
    return Planned(profile, budget, calibration, search, found, dense)


def command_of(planned: Planned, distilled: Distilled | None, settings: Settings) -> str:
    """How to make it again; without folders, which are nobody else's business."""
    flags = {
        "profile": Path(settings.profile).name,
        **{key: Path(value).name for key, value in planned.search.task.source().items()},
        "budget": planned.budget,
        **planned.search.lowering.words,
        "seed": settings.seed,
    }
    for name in ("criterion", "solver", "device", "threads"):
        if (value := getattr(settings, name)) != getattr(Settings, name):
            flags[name] = value
    if settings.table:
        flags["table"] = Path(settings.table).name
    if distilled:
        flags["recover-steps"] = distilled.steps
    else:
        flags["recover-minutes"] = f"{settings.recover_minutes:g}"
    words = (f"--{name} {shlex.quote(str(value))}" for name, value in flags.items())
    return " ".join(("edgeprune build", *words))


def _write_resolved(planned: Planned, settings: Settings) -> None:
    used = planned.search.task.source() | vars(settings)
    used |= {"budget": planned.budget, **planned.search.lowering.words}
    lines = [f"{key} = {toml_value(value)}" for key, value in used.items() if value is not None]
    files.write_text(settings.out / RESOLVED, "\n".join(["version = 1", *lines, ""]))


def _conclude(verdict: Verdict, settings: Settings) -> None:
    """The last lines of a build: what came out, and where to look."""
    if verdict.timing is not None:
        pruned, dense = verdict.timing.pruned.p50_ms, verdict.timing.dense.p50_ms
        console.say(f"  {dense:.2f} ms to {pruned:.2f} ms ({100 * pruned / dense:.0f}%), measured")
        for flag in verdict.timing.flags:
            console.say(f"  {flag}")
    if verdict.scores is not None:
        name, before, after = verdict.scores.name, verdict.scores.dense, verdict.scores.file
        console.say(f"  {name} {100 * before:.2f} to {100 * after:.2f} on the test split")
    if len(verdict.turns) > 1:
        console.say(f"  {verdict.loop}")
    console.say(f"verdict: {verdict.status}" + (f" ({verdict.reason})" if verdict.reason else ""))
    console.say(f"see {settings.out / 'report.html'}")


@contextlib.contextmanager
def _opened(
    settings: Settings, names: tuple[str, ...]
) -> Iterator[tuple[Stages, Cluster, Device | None]]:
    """The build folder, what works for the build, and what measures if it is at hand."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(open_cluster(settings.cluster))
        stages = stack.enter_context(Stages(settings.out, names))
        name = settings.measured_on
        device = stack.enter_context(cluster.device(name, settings.threads)) if name else None
        yield stages, cluster, device
