"""``edgeprune audit``: what a plan is worth beside random and worst plans of its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune import console, files
from edgeprune.cli.app import UNEXPECTED, Outcome, command
from edgeprune.cli.target import Calibration, Target, read_calibrated


@command("audit")
def audit(
    target: Target,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="What to audit.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for page and JSON.")] = Path(
        "audit"
    ),
    calibration: Calibration = None,
    criterion: Annotated[
        str | None, typer.Option(help="What the units were chosen by; obs by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Random twins of the plan; 3 or more.")] = 5,
) -> Outcome:
    """Check that masked equals removed, and compare a plan with random and worst twins.

    Writes audit.html and audit.json; ends with 1 where the cut program is not the masked one.
    """
    from edgeprune.audit import audit as run
    from edgeprune.audit.table import sentences, twins_table
    from edgeprune.importance import CRITERIA, DEFAULT
    from edgeprune.plan import Plan
    from edgeprune.report.audit_page import audit_page
    from edgeprune.sites import find_sites

    files.check_writable(out / "audit.json")
    plan = Plan.read(plan_file)
    CRITERIA.named(criterion or DEFAULT)
    task, program, batches = read_calibrated(target, calibration)
    found = run(task, find_sites(program), plan, batches, criterion or DEFAULT, seeds)
    console.say(twins_table(found))
    for line in sentences(found):
        console.say(line)
    files.write_json(out / "audit.json", "audit", found.to_json())
    console.say(f"{files.write_text(out / 'audit.html', audit_page(task.name, found))}")
    return Outcome(found.to_json(), 0 if found.holds else UNEXPECTED)
