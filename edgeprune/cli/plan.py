"""``edgeprune plan``: a build up to the plan."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.job import build_flags, read_job

if TYPE_CHECKING:
    from edgeprune.build import Settings
    from edgeprune.search import SearchResult
    from edgeprune.task import Task


@command("plan", options=build_flags)
def plan(**flags: Any) -> Outcome:
    """Choose what to cut, and stop there: the build folder gets plan.json.

    `edgeprune build` with the same flags goes on from it.
    """
    job = read_job(**flags)
    found = plan_only(job.task, job.settings)
    _say(found)
    return Outcome(
        {
            "out": str(job.settings.out),
            "plan": found.plan.to_json(),
            "predicted_ms": found.chosen.predicted_ms,
            "measured_ms": found.chosen.measured_ms,
            "certificate": asdict(found.solution.certificate),
        }
    )


def plan_only(task: Task, settings: Settings) -> SearchResult:
    """The stages of a build up to the plan, in its folder.

    Raises:
        InputError: wrong task, profile, budget or folder.
        InfeasibleError: no plan meets the budget; says which bound and what is reachable.
    """
    from edgeprune.build import (
        SCORED_EXAMPLES,
        STAGES,
        capture_stage,
        cost_stage,
        dense_stage,
        first_examples,
        profile_stage,
        score_stage,
        sites_stage,
        solve_stage,
    )
    from edgeprune.devices import connect
    from edgeprune.formulate import choices_of, token_levels
    from edgeprune.search import Search
    from edgeprune.stages import Stages

    stages = Stages(settings.out, STAGES[: STAGES.index("solve") + 1])
    with contextlib.ExitStack() as opened:
        with stages.stage("profile"):
            profile, budget, precision = profile_stage(settings)
            name = settings.device or ("local" if settings.profile == "host" else None)
            device = opened.enter_context(connect(name, settings.threads)) if name else None
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
            return solve_stage(stages, search, settings)


def _say(found: SearchResult) -> None:
    for name, units in sorted(found.plan.kept.items()):
        console.say(f"  {name}: {f'keeps {len(units)}' if units else 'removed'}")
    for name, keep in sorted(found.plan.tokens.items()):
        console.say(f"  {name}: {keep} go on")
    certificate = found.solution.certificate
    proof = "optimal" if certificate.exact else f"within {certificate.gap_pct:.2f}% of optimal"
    console.say(f"{proof} for the table ({certificate.solver}); {certificate.binding} binds")
