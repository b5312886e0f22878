"""``edgeprune report``: a build's page, drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune import console, files
from edgeprune.cli.app import Outcome, command


@command("report")
def report(
    folder: Annotated[Path, typer.Argument(metavar="BUILD_DIR", help="A finished build.")],
) -> Outcome:
    """Write report.html again from report.json."""
    from edgeprune.report import Report, render

    found = Report.read(folder / "report.json")
    written = files.write_text(folder / "report.html", render(found))
    console.say(f"{written}")
    return Outcome(found.to_json())
