"""``edgeprune validate``: a finished build, checked and measured again."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from edgeprune import console
from edgeprune.budget import AbsoluteBudget, Budget
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.bundle import read_artifact
from edgeprune.cli.job import read_resolved
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.validate import Verdict


@command("validate")
def validate(
    folder: Annotated[Path, typer.Argument(metavar="BUILD_DIR", help="A finished build.")],
    budget: Annotated[str | None, typer.Option(help="Another one than it was built for.")] = None,
    device: Annotated[
        str | None, typer.Option(help="What measures; that of the build if not given.")
    ] = None,
    tflite_runtime: Annotated[
        bool, typer.Option("--tflite-runtime", help="Check it in tflite-runtime 2.14 too.")
    ] = False,
) -> Outcome:
    """Check a build's model again: numerics, score, speed. Rewrites verdict.json.

    Reads the task's test split again.
    """
    from edgeprune.cluster import open_cluster
    from edgeprune.devices import connect
    from edgeprune.host import check_is_host
    from edgeprune.lower import Lowering, lower
    from edgeprune.profile import load_profile
    from edgeprune.program import Program
    from edgeprune.steps import capture_stage
    from edgeprune.validate import Reference, Verdict, check_latency, with_tflite_runtime
    from edgeprune.validate import validate as check

    asked = Budget.parse(budget) if budget else None
    job = read_resolved(folder, device=device)
    if job.settings.device == "local" and job.settings.profile != "host":
        check_is_host(load_profile(job.settings.profile))
    suffix = Lowering(**job.settings.asked_of_lowering).suffix
    artifact = read_artifact(folder / f"model{suffix}")
    before = Verdict.read(folder / "verdict.json")
    slim = Program.load(folder / "slim.pt2")
    dense = capture_stage(job.task)[0]
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        with console.progress("lowering the dense model", 1) as advance:
            uncut = scratch / f"dense{suffix}"
            calibration = tuple(job.task.calibration())
            dense_file = lower(dense, uncut, artifact.lowering, calibration)
            advance()
        name, threads = job.settings.measured_on, job.settings.threads
        cluster = opened.enter_context(open_cluster(job.settings.cluster))
        at_hand = opened.enter_context(cluster.device(name, threads)) if name else None
        if at_hand is None and asked:
            raise InputError(
                "--budget: the device is not at hand, so nothing can be measured. Add --device."
            )
        here = artifact.runnable is not None
        timing, bounds = None, _bounds_of(before, job.budget)
        if at_hand is not None:
            example = dense.example_inputs
            timing = check_latency(
                artifact, at_hand, dense_file, example, fit=slim.fit, memory=True
            )
            bounds = timing.resolve(asked or job.budget)
        verdict = check(
            artifact,
            at_hand,
            bounds=bounds,
            recovered=slim,
            dense=Reference(dense, dense_file),
            task=job.task,
            timing=timing,
            predicted=before.predicted,
            runtime=at_hand or (opened.enter_context(connect("local")) if here else None),
        )
        if tflite_runtime:
            verdict = with_tflite_runtime(verdict, artifact, map(slim.fit, calibration))
    verdict.write(folder)
    _say(verdict, folder)
    return Outcome(verdict.to_json(), verdict.exit_code)


def _bounds_of(verdict: Verdict, budget: Budget) -> AbsoluteBudget:
    """The bounds that a verdict was given against."""
    wanted = {check.name: check.wanted for check in verdict.checks}
    names = ("latency_ms", "peak_memory_mb", "size_mb")
    latency, memory, size = (wanted.get(name) for name in names)
    return AbsoluteBudget(latency, memory, size, wanted.get("score_floor"), budget.percentile)


def _say(verdict: Verdict, folder: Path) -> None:
    """Every check with its numbers, then the verdict in one line."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title, side in (("check", "left"), ("", "left"), ("got", "right"), ("wanted", "right")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    table.add_column("what", overflow="fold")
    words = {True: "ok", False: "no", None: "-"}
    for check in verdict.checks:
        got, wanted = ("" if n is None else f"{n:.5g}" for n in (check.got, check.wanted))
        table.add_row(check.name, words[check.passed], got, wanted, check.note)
    console.say(table)
    scores = verdict.scores
    if scores is not None:
        interval = scores.interval
        sure = f", 95% {interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ""
        console.say(
            f"{scores.name}: {scores.dense:.4f} dense, {scores.file:.4f} pruned "
            f"({scores.difference:+.4f}{sure})"
        )
    for flag in verdict.timing.flags if verdict.timing else ():
        console.say(flag)
    console.say(f"verdict: {verdict.status.replace('_', ' ')} · {folder}")
