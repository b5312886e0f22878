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
    weights: Annotated[
        Path | None,
        typer.Option(metavar="SLIM.pt2", help="Of this cut model, for another length of inputs."),
    ] = None,
) -> Outcome:
    """Cut a model by a plan: the same plan gives the same model, bit for bit.

    With --weights, of a model that was cut by the plan and recovered, TASK is the same model
    captured at another length.
    """
    from edgeprune.plan import Plan
    from edgeprune.program import Program
    from edgeprune.surgery import apply as cut
    from edgeprune.surgery import transfer

    plan = Plan.read(plan_file)
    program = read_target(target)
    slim = transfer(Program.load(weights), plan, program) if weights else cut(program, plan)
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
