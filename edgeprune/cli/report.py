"""``edgeprune report``: a build's page, drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune import console, files
from edgeprune.cli.app import Outcome, command
from edgeprune.errors import InputError


@command("report")
def report(
    folder: Annotated[Path, typer.Argument(metavar="BUILD_DIR", help="A finished build.")],
) -> Outcome:
    """Write report.html again from report.json."""
    from edgeprune.report import render

    source = folder / "report.json"
    document = files.read_json(source, "report")
    try:
        page = render(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{source}: not a complete report ({error!r}). Build again.") from error
    written = files.write_text(folder / "report.html", page)
    console.say(f"{written}")
    return Outcome(document)
