"""``edgeprune apply``: a model and a plan make the smaller model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.target import Target, read_target


@command("apply")
def apply(
    target: Target,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="What to keep.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The smaller model.")] = Path("slim.pt2"),
) -> Outcome:
    """Cut a model by a plan: the same plan gives the same model, bit for bit."""
    from edgeprune.plan import Plan
    from edgeprune.surgery import apply as cut

    plan = Plan.read(plan_file)
    program = read_target(target)
    slim = cut(program, plan)
    replace(slim, meta=slim.meta | {"plan": plan.hash}).save(out)
    console.say(
        f"{out}: {slim.parameters:,} of {program.parameters:,} weights, "
        f"{slim.size_bytes / 1e6:.1f} of {program.size_bytes / 1e6:.1f} MB"
    )
    return Outcome(
        {
            "out": str(out),
            "plan": plan.hash,
            "parameters": slim.parameters,
            "parameters_before": program.parameters,
            "size_bytes": slim.size_bytes,
            "size_bytes_before": program.size_bytes,
        }
    )
