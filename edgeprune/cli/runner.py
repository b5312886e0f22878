"""``edgeprune bundle``: what runs lowered files where there is no Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, command


@command("bundle")
def bundle(
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    target: Annotated[str | None, typer.Option(help="Such as aarch64-linux; this machine.")] = None,
    litert: Annotated[
        Path | None, typer.Option(help="For aarch64-android: libLiteRt.so out of its AAR.")
    ] = None,
) -> Outcome:
    """The native runner for a device, with runtimes and our delegates."""
    from edgeprune.devices.bundle import find_bundle, write_bundle
    from edgeprune.kernels import host_target

    made = write_bundle(find_bundle(target or host_target(), litert), out)
    size_mb = sum(file.stat().st_size for file in made.folder.iterdir()) / 2**20
    runtimes = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    console.say(f"{out}: {size_mb:.0f} MiB, {runtimes}. On the device: ./runner JOB")
    return Outcome({"target": made.target, "folder": str(out), "versions": made.versions})
