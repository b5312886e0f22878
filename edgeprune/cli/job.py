"""What a build is told: flags, then ``./edgeprune.toml``, then defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeprune.budget import Budget
from edgeprune.config import FILE_NAME, RESOLVED, load_config
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.settings import Settings
    from edgeprune.task import Task

NOT_SETTINGS = ("task", "model", "calibration")


@dataclass(frozen=True)
class Job:
    """A task and how to prune it, checked as far as that costs nothing."""

    task: Task
    settings: Settings

    @property
    def budget(self) -> Budget:
        """What was asked for, or else the profile's."""
        from edgeprune.profile import load_profile

        asked = self.settings.budget
        return Budget.parse(asked) if asked else load_profile(self.settings.profile).budget


def build_flags(
    profile: Annotated[
        str | None, typer.Option(help="A device: a name of `edgeprune profiles`, or a .toml file.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A built-in task, or a task file (path.py:ClassName).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH.pt2", help="A saved model, instead of a task.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="FILE.npz", help="Inputs for --model, an array each.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="latency=60% or latency.p90=12ms,memory=40MB,score=0.7")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The build folder; build/<task>-<profile> if not given.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"] | None, typer.Option(help="The profile's if not given.")
    ] = None,
    runtime: Annotated[
        Literal["executorch", "litert"] | None, typer.Option(help="The profile's if not given.")
    ] = None,
    delegate: Annotated[
        Literal["auto", "off"] | None,
        typer.Option(help="off: a file for apps without our library; the profile's if not given."),
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="An NPU or GPU, or cpu; the profile's if not given.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="What measures; with --profile host that is local.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(help="Costs measured before: of `edgeprune tables`, or a file."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the runtime; 1.")] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster that does the work.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all that is random; 0.")] = None,
    criterion: Annotated[
        str | None, typer.Option(help="How units are ranked: of `edgeprune criteria`.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="dp, milp or auto.")] = None,
    recover_minutes: Annotated[
        float | None, typer.Option(min=0, help="Of distillation at most; 0 leaves it out.")
    ] = None,
    recover_steps: Annotated[
        int | None, typer.Option(min=1, help="Of distillation, exactly, whatever they take.")
    ] = None,
) -> None:
    """The flags that ``build`` and ``plan`` share; each is a key of ``edgeprune.toml``."""


def read_job(**flags: Any) -> Job:
    """The job that the flags and the ``edgeprune.toml`` of the working folder ask for.

    Raises:
        InputError: what is asked is unknown, contradictory or missing. Nothing was written.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    written = load_config(FILE_NAME) if Path(FILE_NAME).exists() else {}
    for one, other in (("task", "model"), ("model", "task")):
        if one in given and other not in given:
            written.pop(other, None)
            if one == "task":
                written.pop("calibration", None)
    asked = written | given
    _check(asked)
    task = _task(asked)
    name = Path(asked["profile"]).stem
    asked.setdefault("out", f"build/{task.name}-{name}")
    return Job(task, _settings(asked))


def read_resolved(folder: Path, **other: Any) -> Job:
    """The job that a build folder was made by, with ``other`` settings where they are given.

    Raises:
        InputError: it is no build folder, or the build did not finish.
    """
    file = folder / RESOLVED
    if not file.is_file():
        raise InputError(f"{folder}: no {RESOLVED} in it. Give the folder of a finished build.")
    asked = load_config(file) | {"out": str(folder)}
    asked |= {key: value for key, value in other.items() if value is not None}
    _check(asked)
    return Job(_task(asked), _settings(asked))


def _check(asked: dict[str, Any]) -> None:
    """What can be said before anything heavy is loaded."""
    if "profile" not in asked:
        raise InputError(
            "no device given. Add --profile NAME (`edgeprune profiles` lists them), or "
            f"profile in ./{FILE_NAME}."
        )
    if "task" in asked and ("model" in asked or "calibration" in asked):
        raise InputError("got a task and a model file; wanted one of them")
    if "task" not in asked and "model" not in asked:
        raise InputError(
            "nothing to prune given. Add --task NAME, or --model PATH.pt2 --calibration FILE.npz, "
            f"or the same in ./{FILE_NAME}."
        )
    if "model" in asked and "calibration" not in asked:
        raise InputError("--model also needs --calibration FILE.npz: inputs to decide the cut on")
    if "budget" in asked:
        Budget.parse(asked["budget"])


def _task(asked: dict[str, Any]) -> Task:
    from edgeprune.task import load_task

    if asked["profile"] != "host":
        # Before the task's own code runs; the host's may have to be measured first.
        from edgeprune.profile import load_profile

        load_profile(asked["profile"])
    if "task" in asked:
        return load_task(asked["task"])
    from edgeprune.tasks.model_file import ModelFileTask

    return ModelFileTask(asked["model"], asked["calibration"])


def _settings(asked: dict[str, Any]) -> Settings:
    from edgeprune.cost import shelf
    from edgeprune.devices import DRIVERS
    from edgeprune.importance import CRITERIA, DEFAULT
    from edgeprune.settings import Settings
    from edgeprune.solve.registry import SOLVERS

    # Said at once, not after minutes of other work.
    CRITERIA.named(asked.get("criterion", DEFAULT))
    SOLVERS.named(asked.get("solver", "auto"))
    DRIVERS.named(asked.get("device", "local").partition(":")[0])
    if "table" in asked:
        shelf.find(asked["table"])
    settings = {key: value for key, value in asked.items() if key not in NOT_SETTINGS}
    return Settings(**settings)
