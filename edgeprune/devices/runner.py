"""What the native runner is asked, and what it answers; ``backends/runner/job.h`` has the words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from edgeprune import files
from edgeprune.devices.measurement import Moment
from edgeprune.devices.protocol import (
    COOL_LIMIT_S,
    COOL_STEP_C,
    COOL_STEP_S,
    STABLE_RUNS,
    STABLE_WITHIN,
    WARMUP_LIMIT_S,
)
from edgeprune.devices.runtimes import executorch, litert_trace
from edgeprune.devices.runtimes.runtime import Event
from edgeprune.errors import InputError

Kind: TypeAlias = Literal["measure", "memory", "profile", "run"]
RUNTIMES = {".pte": "executorch", ".tflite": "litert"}
"""The runner's name for the runtime of a file."""
ANSWER = "answer.json"
"""What the runner writes beside its job."""


@dataclass(frozen=True)
class Given:
    """An input: raw numbers in a file.

    Attributes:
        type: as PyTorch calls it; ``int64`` also where the file takes ``int32``.
        file: any number of rows behind each other.
        shape: of one row, batch 1.
    """

    type: str
    file: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A lowered file on the device; fields as of a ``Workload``."""

    name: str
    file: str
    inputs: tuple[Given, ...]
    signature: str = ""


@dataclass(frozen=True)
class Job:
    """What the runner is to do; its paths are relative to the job's folder.

    Attributes:
        kind: ``measure`` times the files in turns, ``memory`` weighs one, ``profile`` times its
            operators, ``run`` writes the outputs of all rows of its inputs.
        libraries: LiteRT, and our delegate.
        cpus: to run on; none: all.
        rounds, seconds: each file is timed so often, and so long, whichever is more.
        gate_c: wait while the device is warmer and cools down, as ``protocol.cool_down`` does.
        limit_s: the runner ends by then.
        outputs: a folder, where ``run`` writes ``0.0``, ``0.1`` …
    """

    kind: Kind
    runtime: str
    subjects: tuple[Subject, ...]
    libraries: tuple[str, ...] = ()
    threads: int = 1
    cpus: tuple[int, ...] = ()
    rounds: int = 50
    seconds: float = 0.0
    gate_c: float | None = None
    limit_s: float = 0.0
    outputs: str = "."


@dataclass(frozen=True)
class Output:
    """A tensor that a file gives, for one row."""

    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """What was found out about a file; None and empty where it was not asked.

    Attributes:
        peak_memory_mb: growth of the resident memory from before loading to its highest.
        operators: as of ``Device.profile``, in the order of their first call.
        rows: of its inputs.
    """

    name: str
    load_ms: float | None
    first_run_ms: float | None
    warmup_runs: int
    samples_ms: tuple[float, ...]
    peak_memory_mb: float | None
    rows: int
    outputs: tuple[Output, ...]
    operators: tuple[Event, ...] | None


@dataclass(frozen=True)
class Answer:
    """What the runner found.

    Attributes:
        runtime_version: where the runtime tells it.
        cooled_s: how long it waited for the device to cool down.
        moments: before, during and after.
        found: in the order of the job's subjects.
    """

    kind: Kind
    runtime: str
    runtime_version: str | None
    threads: int
    affinity: tuple[int, ...]
    governor: str | None
    cooled_s: float
    moments: tuple[Moment, ...]
    found: tuple[Found, ...]


def job_text(job: Job) -> bytes:
    """The job as the runner reads it."""
    lines: list[tuple[object, ...]] = [
        ("kind", job.kind),
        ("runtime", job.runtime),
        *(("library", _word(library)) for library in job.libraries),
        ("threads", job.threads),
        ("rounds", job.rounds),
        ("seconds", job.seconds),
        ("warmup", STABLE_RUNS, STABLE_WITHIN, WARMUP_LIMIT_S),
        ("limit", job.limit_s),
        ("outputs", _word(job.outputs)),
        *(_subject(each) for each in job.subjects),
    ]
    if job.cpus:
        lines.append(("cpus", ",".join(map(str, job.cpus))))
    if job.gate_c is not None:
        lines.append(("temperature", job.gate_c, COOL_STEP_S, COOL_STEP_C, COOL_LIMIT_S))
    return "".join(" ".join(map(str, line)) + "\n" for line in lines).encode()


def read_answer(path: str | os.PathLike[str]) -> Answer:
    """Read ``answer.json``.

    Raises:
        InputError: missing, damaged, or from a newer runner.
    """
    body = files.read_json(path, "answer")
    try:
        return Answer(
            **{key: body[key] for key in ("kind", "runtime", "runtime_version", "threads")},
            affinity=tuple(body["affinity"]),
            governor=body["governor"],
            cooled_s=body["cooled_s"],
            moments=tuple(map(_moment, body["moments"])),
            found=tuple(_found(body["runtime"], each) for each in body["models"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not what the runner writes ({error!r}). Are runner and edgeprune of one "
            "version? Run edgeprune bundle again."
        ) from error


def _word(text: str) -> str:
    # A lone - stands for the first signature.
    return "%2D" if text == "-" else quote(text, safe="/._-+,")


def _subject(each: Subject) -> tuple[object, ...]:
    inputs = (f"{given.type}:{_word(given.file)}" for given in each.inputs)
    signature = _word(each.signature) if each.signature else "-"
    return ("model", _word(each.name), _word(each.file), signature, *inputs)


def _moment(body: dict[str, Any]) -> Moment:
    def thousandth(key: str) -> float | None:
        return None if body[key] is None else body[key] / 1000

    return Moment(body["at_s"], thousandth("frequency_khz"), thousandth("temperature_mc"))


def _found(runtime: str, body: dict[str, Any]) -> Found:
    memory = body["memory_bytes"]
    return Found(
        **{key: body[key] for key in ("name", "load_ms", "first_run_ms", "warmup_runs", "rows")},
        samples_ms=tuple(body["samples_ms"]),
        peak_memory_mb=None if memory is None else memory / 2**20,
        outputs=tuple(Output(each["type"], tuple(each["sizes"])) for each in body["outputs"]),
        operators=None if body["operators"] is None else _operators(runtime, body["operators"]),
    )


def _operators(runtime: str, events: list[dict[str, Any]]) -> tuple[Event, ...]:
    """With our words for the operators."""
    named = {"executorch": executorch, "litert": litert_trace}[runtime]
    return tuple(named.named_events((each["event"], each["ms"], each["calls"]) for each in events))
