"""``edgeprune measure``: a lowered file on the clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.bundle import made_up_inputs, read_artifact

if TYPE_CHECKING:
    from edgeprune.devices import Measurement


@command("measure")
def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A lowered file.")],
    runs: Annotated[int, typer.Option(min=1, help="Timed runs after warm-up.")] = 50,
    device: Annotated[str, typer.Option(help="Where to run it.")] = "local",
    threads: Annotated[int, typer.Option(min=1, help="Of the runtime, pinned.")] = 1,
) -> Outcome:
    """Run a lowered file on a device: latency, loading time, memory; of every signature."""
    from edgeprune.devices import Workload, connect

    artifact = read_artifact(model)
    loads = [
        Workload(each.name, model, made_up_inputs(each.inputs), each.name)
        for each in artifact.signatures
    ] or [Workload(model.name, model, made_up_inputs(artifact.inputs))]
    with connect(device, threads=threads) as opened:
        measured = opened.measure_in_turns(loads, rounds=runs, memory=True)
    console.say(
        f"{model} on {device}, {threads} thread{'s' if threads > 1 else ''}, {artifact.lowering}, "
        f"{runs} runs"
    )
    for name, found in measured.items():
        _say(name if artifact.signatures else "", found)
    documents = {name: found.to_json() for name, found in measured.items()}
    return Outcome({"signatures": documents} if artifact.signatures else documents[model.name])


def _say(signature: str, found: Measurement) -> None:
    console.say(
        f"{signature}\n"
        * bool(signature)
        + f"  p50 {found.p50_ms:.3f} ms · p90 {found.p90_ms:.3f} ms · min {found.min_ms:.3f} ms\n"
        f"  load {found.load_ms:.1f} ms · first run {found.first_run_ms:.2f} ms · "
        f"peak memory {found.peak_memory_mb:.1f} MiB · file {found.file_size_mb:.1f} MiB"
    )
