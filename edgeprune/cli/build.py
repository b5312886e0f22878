"""``edgeprune build``: the whole pipeline."""

from __future__ import annotations

from typing import Any

from edgeprune.cli.app import Outcome, command
from edgeprune.cli.job import build_flags, read_job


@command("build", options=build_flags)
def build(**flags: Any) -> Outcome:
    """Cut a model to a device's budget and prove it there.

    What is not given comes from ./edgeprune.toml, whose keys are the flags.

    An interrupted build goes on where it stopped when the same command is run again.
    """
    from edgeprune.build import build as run_build

    job = read_job(**flags)
    result = run_build(job.task, **vars(job.settings))
    return Outcome(
        {
            "out": str(result.out),
            "exit_code": result.exit_code,
            "plan": result.search.plan.to_json(),
            "verdict": result.verdict.to_json(),
        },
        result.exit_code,
    )
