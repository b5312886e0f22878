"""``edgeprune export-hf``: the smaller model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, command


@command("export-hf")
def export_hf(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The original, as transformers saved it.")
    ],
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="What to keep.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder.")] = Path("slim-hf"),
    weights: Annotated[
        Path | None,
        typer.Option(metavar="SLIM.pt2", help="The cut model, if it was recovered since."),
    ] = None,
) -> Outcome:
    """Write config.json and safetensors of the cut model, where a configuration can say the cut.

    The folder is written only when transformers gives the cut model's outputs from it.
    """
    from edgeprune.errors import InputError
    from edgeprune.export import capture_folder, export_folder, is_folder, read_folder
    from edgeprune.plan import Plan
    from edgeprune.program import Program
    from edgeprune.sites import find_sites
    from edgeprune.surgery import apply

    plan = Plan.read(plan_file)
    if not is_folder(folder):
        raise InputError(f"{folder}: no config.json there; wanted a folder of save_pretrained")
    original = read_folder(folder)
    program = capture_folder(original)
    sites = find_sites(program)
    cut = apply(program, plan, sites)  # the plan fits, also where the weights are given
    slim = Program.load(weights) if weights else cut
    if {p: t.shape for p, t in slim.tensors.items()} != {
        p: t.shape for p, t in cut.tensors.items()
    }:
        raise InputError(f"{weights}: its weights are not those of {folder} cut by {plan_file}")
    found = export_folder(original, sites, plan, slim, out)
    for name, (before, after) in found.changes.items():
        console.say(f"  {name}: {before} -> {after}")
    console.say(
        f"{found.path}: transformers gives the cut model's outputs from it, to "
        f"{found.difference:.1e}"
    )
    return Outcome(
        {"out": str(found.path), "changes": found.changes, "difference": found.difference}
    )
