"""``edgeprune kernels``: the native kernels of a device."""

from __future__ import annotations

from typing import Annotated

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
) -> Outcome:
    """Compile the kernels for a device; what was compiled before is taken from the cache."""
    from edgeprune.kernels import build_kernels, host_target

    library = build_kernels(target)
    console.say(str(library))
    return Outcome({"target": target or host_target(), "library": str(library)})
