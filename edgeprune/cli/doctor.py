"""``edgeprune doctor``: is everything there?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, command


@command("doctor")
def doctor(
    tflite_runtime: Annotated[
        bool, typer.Option("--tflite-runtime", help="Try tflite-runtime 2.14 too; installs it.")
    ] = False,
) -> Outcome:
    """Say what is installed, what is missing, and what to run."""
    from edgeprune.doctor import examine

    findings = []
    for finding in examine(tflite_runtime):
        findings.append(finding)
        mark = "ok" if finding.ok else "PROBLEM" if finding.needed else "note"
        console.say(f"{mark:<8} {finding.name:<22} {finding.found}")
    remedies = dict.fromkeys(f.remedy for f in findings if f.remedy)
    if remedies:
        console.say("what to do:\n" + "\n".join(f"  {remedy}" for remedy in remedies))
    can_build = all(finding.ok for finding in findings if finding.needed)
    console.say("a build can run" if can_build else "a build cannot run yet")
    document = {"can_build": can_build, "findings": [asdict(finding) for finding in findings]}
    return Outcome(document, 0 if can_build else 1)
