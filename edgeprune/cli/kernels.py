"""``edgeprune kernels``: the native kernels of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, app, command

kernels = typer.Typer(help="The native kernels.", no_args_is_help=True)
app.add_typer(kernels, name="kernels")


@command("build", group=kernels)
def build(
    target: Annotated[
        str | None, typer.Option(help="Such as aarch64-android; this machine.")
    ] = None,
    library: Annotated[
        Literal["kernels", "executorch", "litert"],
        typer.Option(help="The kernels alone, or with a runtime's operators and delegate."),
    ] = "kernels",
    sdk: Annotated[
        Path | None,
        typer.Option(help="The runtime's unpacked wheel for the target; the installed one."),
    ] = None,
) -> Outcome:
    """Compile our library for a device; what was compiled before is taken from the cache."""
    from edgeprune.kernels import build_library, host_target

    built = build_library(library, target, sdk)
    console.say(str(built))
    return Outcome({"target": target or host_target(), "library": str(built)})
