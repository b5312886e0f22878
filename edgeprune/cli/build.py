"""``edgeprune build``: the whole pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.job import build_flags, read_job, write_resolved

if TYPE_CHECKING:
    from pathlib import Path

    from edgeprune.validate import Verdict


@command("build", options=build_flags)
def build(**flags: Any) -> Outcome:
    """Cut a model to a device's budget and prove it there.

    What is not given comes from ./edgeprune.toml, whose keys are the flags. An interrupted build
    continues where it stopped when the same command is run again.
    """
    from edgeprune.build import build as run_build

    job = read_job(**flags)
    result = run_build(job.task, job.settings)
    write_resolved(job)
    say_verdict(result.verdict, result.out)
    return Outcome(
        {
            "out": str(result.out),
            "exit_code": result.exit_code,
            "plan": result.search.plan.to_json(),
            "verdict": result.verdict.to_json(),
        },
        result.exit_code,
    )


def say_verdict(verdict: Verdict, folder: Path) -> None:
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
    console.say(f"verdict: {verdict.status.replace('_', ' ')} · {folder}")
