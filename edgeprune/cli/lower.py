"""``edgeprune lower``: a saved model as a file that a device runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgeprune import console, files
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.bundle import made_up_inputs
from edgeprune.cli.target import Targets, read_target
from edgeprune.errors import EdgepruneError, InputError

if TYPE_CHECKING:
    from edgeprune.lower import Artifact
    from edgeprune.program import Program
    from edgeprune.validate.numerics import Numerics


@command("lower")
def lower(
    targets: Targets,
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
    accelerator: Annotated[
        str | None, typer.Option(help="An NPU or GPU, or cpu; the profile's if not given.")
    ] = None,
    profile: Annotated[str, typer.Option(help="The device it is for.")] = "host",
) -> Outcome:
    """Lower a model; its manifest.json and delegation.csv are put beside the file.

    Several, such as a model captured at several lengths, become signatures of one .tflite, each
    under the name of its file; every one is run and checked against its model.
    """
    from edgeprune.lower import lower as lower_program
    from edgeprune.lower import lower_signatures, write_delegation
    from edgeprune.lower.manifest import manifest, write_manifest
    from edgeprune.profile import load_profile

    device = load_profile(profile)
    asked: dict[str, str | None] = {
        "precision": precision,
        "runtime": runtime,
        "delegate": delegate,
    }
    asked |= {"delegate": delegate, "accelerator": accelerator}
    lowering = device.lowering.asked(**{key: word for key, word in asked.items() if word})
    out = out or Path(f"model{lowering.suffix}")
    beside = out.parent / "manifest.json"
    if beside.exists() and out.name not in files.read_json(beside, "manifest").get("sha256", {}):
        raise InputError(f"{beside}: describes another file. Give -o in another folder.")
    programs = {_signature(target): read_target(target) for target in targets}
    if len(programs) < len(targets):
        raise InputError(f"got the same name twice ({', '.join(targets)}): signatures need others")
    program = next(iter(programs.values()))
    with console.progress(f"lowering for {lowering}", 1) as advance:
        if len(programs) > 1:
            artifact = lower_signatures(programs, out, lowering)
            _check_signatures(artifact, programs)
        else:
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


def _signature(target: str) -> str:
    """The file's name, less the endings: ``slim/tokens_32.pt2`` is ``tokens_32``."""
    return Path(target.partition(":")[0]).stem


def _check_signatures(artifact: Artifact, programs: dict[str, Program]) -> None:
    """Run each on made-up inputs; a file with one that is wrong does not stay.

    Raises:
        EdgepruneError: a signature does not compute what its program does.
    """
    from edgeprune.devices import connect
    from edgeprune.validate import check_numerics

    with connect("local") as device:
        for signature in artifact.signatures:
            program = programs[signature.name]
            made = zip(made_up_inputs(signature.inputs), program.example_inputs, strict=True)
            batch = tuple(value.to(example.dtype) for value, example in made)
            found = check_numerics(artifact, device, program, [batch], signature=signature.name)
            if not (found.outputs_agree and found.selections_agree):
                artifact.path.unlink()
                raise EdgepruneError(
                    f"{artifact.path}: signature {signature.name} does not compute what its model "
                    f"does ({found.worst:.2g}, wanted {found.limit:.2g}). Nothing was kept; please "
                    "report it with the model."
                )
            console.say(f"{signature.name}: checked on made-up inputs, {_words(found)}")


def _words(found: Numerics) -> str:
    if found.precision == "int8":
        return f"cosine {found.worst:.4f}"
    return f"largest difference {found.worst:.1g}"
