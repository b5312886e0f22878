"""``edgeprune lower``: a saved model as a file that a device runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeprune import console, files
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.target import Target, read_target
from edgeprune.errors import InputError


@command("lower")
def lower(
    target: Target,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to make; model.pte or .tflite.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None,
        typer.Option(help="Of weights; the profile's if not given."),
    ] = None,
    runtime: Annotated[
        Literal["executorch", "litert"] | None, typer.Option(help="The profile's if not given.")
    ] = None,
    delegate: Annotated[
        Literal["auto", "off"] | None, typer.Option(help="off: a stock runtime loads the file.")
    ] = None,
    profile: Annotated[str, typer.Option(help="The device it is for.")] = "host",
) -> Outcome:
    """Lower a model; its manifest.json and delegation.csv are put beside the file."""
    from edgeprune.lower import Lowering, write_delegation
    from edgeprune.lower import lower as lower_program
    from edgeprune.lower.manifest import manifest, write_manifest
    from edgeprune.profile import load_profile

    device = load_profile(profile)
    usual = device.lowering
    lowering = Lowering(
        *(precision or usual.precision, runtime or usual.runtime, delegate or usual.delegate),
        isa=usual.isa,
    )
    out = out or Path(f"model{lowering.suffix}")
    beside = out.parent / "manifest.json"
    if beside.exists() and out.name not in files.read_json(beside, "manifest").get("sha256", {}):
        raise InputError(f"{beside}: describes another file. Give -o in another folder.")
    program = read_target(target)
    with console.progress(f"lowering for {lowering}", 1) as advance:
        artifact = lower_program(program, out, lowering)
        advance()
    delegation = write_delegation(out.parent / "delegation.csv", artifact.delegation)
    plan = program.meta.get("plan", "not stated")
    write_manifest(beside, manifest(artifact, plan, device.name, program.meta, [delegation]))
    console.say(
        f"{out}: {artifact.size_bytes / 1e6:.1f} MB, {artifact.delegated_nodes} of "
        f"{len(artifact.delegation)} operators delegated"
    )
    return Outcome(
        {
            "out": str(out),
            **lowering.words,
            "sha256": artifact.sha256,
            "size_bytes": artifact.size_bytes,
            "planned_memory_bytes": artifact.planned_memory_bytes,
            "operators": len(artifact.delegation),
            "delegated_operators": artifact.delegated_nodes,
            "seconds": artifact.seconds,
        }
    )
