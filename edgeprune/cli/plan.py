"""``edgeprune plan``: a build up to the plan."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.job import build_flags, read_job

if TYPE_CHECKING:
    from edgeprune.candidates import SearchResult


@command("plan", options=build_flags)
def plan(**flags: Any) -> Outcome:
    """Choose what to cut, and stop there: the build folder gets plan.json.

    `edgeprune build` with the same flags goes on from it.
    """
    from edgeprune.build import plan as run_plan
    from edgeprune.validate.verdict import EXIT_CODES

    job = read_job(**flags)

    found = run_plan(job.task, **vars(job.settings))
    _say(found)
    return Outcome(
        {
            "out": str(job.settings.out),
            "plan": found.plan.to_json(),
            "predicted_ms": found.chosen.predicted_ms,
            "measured_ms": found.chosen.measured_ms,
            "estimated": found.chosen.measured_ms is None,
            "certificate": asdict(found.chosen.certificate),
        },
        EXIT_CODES["not_measured"] if found.chosen.measured_ms is None else 0,
    )


def _say(found: SearchResult) -> None:
    for name, units in sorted(found.plan.kept.items()):
        console.say(f"  {name}: {f'keeps {len(units)}' if units else 'removed'}")
    for name, keep in sorted(found.plan.tokens.items()):
        console.say(f"  {name}: {keep} go on")
    certificate = found.chosen.certificate
    proof = "optimal" if certificate.exact else f"within {certificate.gap_pct:.2f}% of optimal"
    console.say(f"{proof} for the table ({certificate.solver}); {certificate.binding} binds")
