"""``edgeprune validate``: a finished build, checked and measured again."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune import console
from edgeprune.budget import AbsoluteBudget, Budget
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.build import say_verdict
from edgeprune.cli.bundle import read_artifact
from edgeprune.cli.job import read_resolved
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.validate import Verdict


@command("validate")
def validate(
    folder: Annotated[Path, typer.Argument(metavar="BUILD_DIR", help="A finished build.")],
    budget: Annotated[str | None, typer.Option(help="Another one than it was built for.")] = None,
) -> Outcome:
    """Check a build's model again: numerics, score, speed. Rewrites verdict.json.

    Reads the task's test split again.
    """
    from edgeprune.build import capture_stage
    from edgeprune.devices import connect
    from edgeprune.lower import lower
    from edgeprune.program import Program
    from edgeprune.validate import Reference, Verdict, check_latency
    from edgeprune.validate import validate as check

    asked = Budget.parse(budget) if budget else None
    job = read_resolved(folder)
    artifact = read_artifact(folder / "model.pte")
    before = Verdict.read(folder / "verdict.json")
    slim = Program.load(folder / "slim.pt2")
    dense = capture_stage(job.task)[0]
    uncut = folder / "stages" / f"dense-{artifact.precision}.pte"
    with console.progress("lowering the dense model", 1) as advance:
        dense_file = lower(dense, uncut, artifact.precision, artifact.runtime)
        advance()
    with ExitStack() as opened:
        name, threads = job.device, job.settings.threads
        device = opened.enter_context(connect(name, threads)) if name else None
        if device is None and asked:
            raise InputError("--budget: the device is not at hand, so nothing can be measured")
        timing = None
        if device is not None:
            example = dense.example_inputs
            timing = check_latency(artifact, device, dense_file, example, memory=True)
        verdict = check(
            artifact,
            device,
            bounds=timing.resolve(asked or job.budget) if timing else _bounds_of(before),
            recovered=slim,
            dense=Reference(dense, dense_file),
            task=job.task,
            timing=timing,
            predicted=before.predicted,
            runtime=device or opened.enter_context(connect("local")),
        )
    verdict.write(folder)
    say_verdict(verdict, folder)
    return Outcome(verdict.to_json(), verdict.exit_code)


def _bounds_of(verdict: Verdict) -> AbsoluteBudget:
    """The bounds that a verdict was given against."""
    wanted = {check.name: check.wanted for check in verdict.checks}
    names = ("latency_ms", "peak_memory_mb", "size_mb")
    latency, memory, size = (wanted.get(name) for name in names)
    return AbsoluteBudget(latency, memory, size, wanted.get("score_floor"), 50)
