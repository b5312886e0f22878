"""What a command works on: a task's model, or a saved one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgeprune.program import Program
    from edgeprune.task import Batch, Task

Target = Annotated[
    str,
    typer.Argument(
        metavar="TASK|MODEL",
        help="A built-in task, a task file (path.py:ClassName), a saved model (.pt2), or a "
        "Hugging Face folder.",
    ),
]

Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Inputs for a saved model, an array each."),
]

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="TASK|MODEL...",
        help="As for other commands; several become signatures of one .tflite.",
    ),
]


def read_target(target: str) -> Program:
    """The program of a task, of a ``.pt2``, ours or anybody's, or of a Hugging Face folder.

    Raises:
        InputError: there is none, or it cannot be read or captured.
    """
    from edgeprune.export.folder import capture_folder, is_folder, read_folder
    from edgeprune.program import Program
    from edgeprune.program.capture import from_exported, load_exported
    from edgeprune.steps import capture_stage
    from edgeprune.task import load_task

    if is_folder(target):
        return capture_folder(read_folder(target))
    if not is_saved(target):
        return capture_stage(load_task(target))[0]
    exported, notes = load_exported(target)
    return from_exported(exported) if notes is None else Program.load(target)


def read_calibrated(
    target: str, calibration: Path | None
) -> tuple[Task, Program, tuple[Batch, ...]]:
    """A task, or a saved model with its inputs, as (task, program, calibration batches).

    Raises:
        InputError: it cannot be read or captured, or a saved model comes without inputs.
    """
    from edgeprune.errors import InputError
    from edgeprune.steps import capture_stage
    from edgeprune.task import load_task
    from edgeprune.tasks.model_file import ModelFileTask

    saved = is_saved(target)
    if saved and calibration is None:
        raise InputError(f"{target}: a saved model has no data. Add --calibration FILE.npz.")
    if not saved and calibration is not None:
        raise InputError(f"{target}: a task has its own calibration. Leave --calibration out.")
    task = ModelFileTask(target, calibration) if calibration else load_task(target)
    return task, *capture_stage(task)


def is_saved(target: str) -> bool:
    """Whether it is a model in a file or folder, and no task."""
    from edgeprune.export.folder import is_folder

    return target.endswith(".pt2") or is_folder(target)
