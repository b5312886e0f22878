"""``edgeprune measure``: a lowered file on the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.bundle import made_up_inputs, read_artifact


@command("measure")
def measure(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A lowered file.")],
    runs: Annotated[int, typer.Option(min=1, help="Timed runs after warm-up.")] = 50,
    device: Annotated[str, typer.Option(help="Where to run it.")] = "local",
    threads: Annotated[int, typer.Option(min=1, help="Of the runtime, pinned.")] = 1,
) -> Outcome:
    """Run a lowered file on a device: latency, loading time, memory."""
    from edgeprune.devices import Workload, connect

    artifact = read_artifact(model)
    with connect(device, threads=threads) as opened:
        load = Workload(model.name, model, made_up_inputs(artifact))
        found = opened.measure([load], rounds=runs, memory=True)[model.name]
    console.say(
        f"{model} on {device}, {threads} thread{'s' if threads > 1 else ''}, {artifact.lowering}, "
        f"{runs} runs\n"
        f"  p50 {found.p50_ms:.3f} ms · p90 {found.p90_ms:.3f} ms · min {found.min_ms:.3f} ms\n"
        f"  load {found.load_ms:.1f} ms · first run {found.first_run_ms:.2f} ms · "
        f"peak memory {found.peak_memory_mb:.1f} MiB · file {found.file_size_mb:.1f} MiB"
    )
    return Outcome(found.to_json())
