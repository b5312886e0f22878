"""What a command works on: a task's model, or a saved one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeprune.program import Program

Target = Annotated[
    str,
    typer.Argument(
        metavar="TASK|MODEL.pt2",
        help="A built-in task, a task file (path.py:ClassName), or a saved model.",
    ),
]

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TASK|MODEL.pt2...",
        help="As for other commands; several become signatures of one .tflite.",
    ),
]


def read_target(target: str) -> Program:
    """The program of a task or of a ``.pt2``, ours or anybody's.

    Raises:
        InputError: there is none, or it cannot be read or captured.
    """
    from edgeprune.program import Program
    from edgeprune.program.capture import from_exported, load_exported
    from edgeprune.steps import capture_stage
    from edgeprune.task import load_task

    if not target.endswith(".pt2"):
        return capture_stage(load_task(target))[0]
    exported, notes = load_exported(target)
    return from_exported(exported) if notes is None else Program.load(target)
