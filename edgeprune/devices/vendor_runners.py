"""The runtimes' own programs in place of our runner: ExecuTorch's executor_runner, Google's
benchmark_model. Whoever has one for a device names it with ``--runner``.

They tell less: no clocks, no temperatures, no pinning. What they do not tell is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import PurePath
from typing import Protocol, TypeAlias

from edgeprune.devices.protocol import STABLE_RUNS, is_stable
from edgeprune.devices.runner import Answer, Found, Job, Kind, Subject
from edgeprune.errors import EdgepruneError, InputError

Words: TypeAlias = tuple[str, ...]
TURN = 10
"""Timed runs of a file before it is the next one's turn."""
WARMUP_RUNS = 4 * STABLE_RUNS
_MICRO = 1e-3


@dataclass(frozen=True)
class Step:
    """A program to run in the job's folder; its standard output and error are wanted."""

    words: Words
    subject: Subject


class VendorRunner(Protocol):
    """A program that runs files of one runtime."""

    runtime: str
    kinds: tuple[Kind, ...]
    """Of the jobs that it can do."""

    def steps(self, program: str, job: Job) -> tuple[Step, ...]:
        """What to run, in this order.

        Args:
            program: its path on the device.

        Raises:
            InputError: it cannot do such a job.
        """
        ...

    def found(self, subject: Subject, outputs: Sequence[str]) -> Found:
        """What it printed about a file, one text for each step.

        Raises:
            EdgepruneError: that is not what such a program prints.
        """
        ...


class ExecutorRunner:
    """ExecuTorch's ``executor_runner``; it must print its iterations one by one."""

    runtime = "executorch"
    kinds: tuple[Kind, ...] = ("measure",)
    _ITERATION = re.compile(r"Iteration \d+ of \d+: ([\d.]+) ms")
    _LOADED = re.compile(r"Model loaded in ([\d.]+) ms")

    def steps(self, program: str, job: Job) -> tuple[Step, ...]:
        """See ``VendorRunner``."""
        _check(job, "executor_runner", self.kinds)
        if job.libraries:
            raise InputError(
                f"executor_runner loads no libraries, got {job.libraries[0]}. Link our delegate "
                "into it, or lower with --delegate off."
            )
        runs = WARMUP_RUNS + min(TURN, job.rounds)
        return _in_turns(
            job,
            TURN,
            lambda each: (
                *(program, f"--model_path={each.file}", f"--num_executions={runs}"),
                f"--cpu_threads={job.threads}",
                *((f"--inputs={_joined(each)}",) if each.inputs else ()),
            ),
        )

    def found(self, subject: Subject, outputs: Sequence[str]) -> Found:
        """See ``VendorRunner``."""
        samples: list[float] = []
        warmup_runs, first_ms, load_ms = 0, None, None
        for output in outputs:
            runs = [float(ms) for ms in self._ITERATION.findall(output)]
            if not runs:
                raise EdgepruneError(
                    f"{subject.file}: executor_runner printed no iterations. Build it from a "
                    "newer ExecuTorch, with its log on standard error.",
                    detail=output,
                )
            if first_ms is None:
                loaded = self._LOADED.search(output)
                first_ms, load_ms = runs[0], float(loaded[1]) if loaded else None
            warm = _warm(runs)
            warmup_runs += warm
            samples += runs[warm:]
        return Found(
            subject.name, load_ms, first_ms, warmup_runs, tuple(samples), None, 1, (), None
        )


class BenchmarkModel:
    """Google's ``benchmark_model``.

    It prints single runs only if there are no more than two: it is started anew for each two.
    """

    runtime = "litert"
    kinds: tuple[Kind, ...] = ("measure", "memory")
    _RUNS = re.compile(r"count=(\d+) (?:first=(\d+) )?curr=(\d+)")
    _TIMES = re.compile(r"Init: (\d+), First inference: (\d+)")
    _MEMORY = re.compile(r"Memory footprint delta .*overall=([\d.]+)")
    _AT_ONCE = 2

    def steps(self, program: str, job: Job) -> tuple[Step, ...]:
        """See ``VendorRunner``."""
        _check(job, "benchmark_model", self.kinds)
        delegates = tuple(f"--external_delegate_path={library}" for library in job.libraries)
        return _in_turns(
            job,
            self._AT_ONCE,
            lambda each: (
                *(program, f"--graph={each.file}", f"--num_threads={job.threads}"),
                *(f"--num_runs={min(self._AT_ONCE, job.rounds)}", "--min_secs=0"),
                *(f"--warmup_runs={WARMUP_RUNS}", "--warmup_min_secs=0"),
                *(*delegates, "--use_xnnpack=true", *self._inputs(each)),
                *((f"--signature_to_run_for={each.signature}",) if each.signature else ()),
            ),
        )

    def _inputs(self, subject: Subject) -> Words:
        """In the file's order; the names are ours."""
        if not subject.inputs:
            return ()
        wide = [given.file for given in subject.inputs if given.type == "int64"]
        if wide:
            raise InputError(
                f"{wide[0]}: benchmark_model reads numbers as the file has them: int32"
            )
        names = [f"input{number}" for number in range(len(subject.inputs))]
        shapes = (",".join(map(str, given.shape)) for given in subject.inputs)
        places = (f"{name}:{each.file}" for name, each in zip(names, subject.inputs, strict=True))
        return (
            f"--input_layer={','.join(names)}",
            f"--input_layer_shape={':'.join(shapes)}",
            f"--input_layer_value_files={','.join(places)}",
        )

    def found(self, subject: Subject, outputs: Sequence[str]) -> Found:
        """See ``VendorRunner``; memory is benchmark_model's own estimate."""
        samples: list[float] = []
        warmup_runs, times, memory = 0, None, None
        for output in outputs:
            series = self._RUNS.findall(output)
            if len(series) != 2 or int(series[1][0]) > self._AT_ONCE:
                raise EdgepruneError(
                    f"{subject.file}: benchmark_model printed no runs after warm-up. Its last "
                    f"words: {output.strip()[-200:]!r}",
                    detail=output,
                )
            (warm, *_), (_, first, current) = series
            warmup_runs += int(warm)
            samples += [int(run) * _MICRO for run in (first, current) if run]
            times = times or self._TIMES.search(output)
            memory = memory or self._MEMORY.search(output)
        load_ms, first_ms = (int(us) * _MICRO for us in times.groups()) if times else (None, None)
        memory_mb = float(memory[1]) if memory else None
        return _found(subject, load_ms, first_ms, warmup_runs, samples, memory_mb)


def vendor_runner(program: str) -> VendorRunner:
    """The kind of a program, by its name.

    Raises:
        InputError: it is neither.
    """
    name = PurePath(program).name
    for word, runner in (("executor_runner", ExecutorRunner), ("benchmark_model", BenchmarkModel)):
        if word in name:
            return runner()
    raise InputError(
        f"{program}: got a runner called {name}, wanted one with executor_runner or "
        "benchmark_model in its name"
    )


def vendor_answer(runner: VendorRunner, job: Job, outputs: Sequence[str]) -> Answer:
    """What the steps of a job printed, as our runner would have answered."""
    steps = runner.steps("", job)
    found = tuple(
        runner.found(
            subject,
            [text for step, text in zip(steps, outputs, strict=True) if step.subject == subject],
        )
        for subject in job.subjects
    )
    return Answer(job.kind, runner.runtime, None, job.threads, (), None, 0.0, (), found)


def _check(job: Job, program: str, kinds: Sequence[str]) -> None:
    if job.kind not in kinds:
        raise InputError(
            f"{program} cannot do '{job.kind}', only {', '.join(kinds)}. Leave --runner out."
        )
    named = [each.signature for each in job.subjects if each.signature]
    if named and program == "executor_runner":
        raise InputError(f"got signature '{named[0]}', but a .pte has one method")


def _in_turns(job: Job, at_once: int, words: Callable[[Subject], Words]) -> tuple[Step, ...]:
    turns = ceil(job.rounds / at_once) if job.kind == "measure" else 1
    return tuple(Step(words(each), each) for _ in range(turns) for each in job.subjects)


def _found(
    subject: Subject,
    load_ms: float | None,
    first_run_ms: float | None,
    warmup_runs: int,
    samples_ms: Sequence[float],
    peak_memory_mb: float | None = None,
) -> Found:
    return Found(
        *(subject.name, load_ms, first_run_ms, warmup_runs, tuple(samples_ms), peak_memory_mb),
        rows=1,
        outputs=(),
        operators=None,
    )


def _joined(subject: Subject) -> str:
    return ",".join(given.file for given in subject.inputs)


def _warm(runs: Sequence[float]) -> int:
    """How many runs were warm-up."""
    ends = range(2 * STABLE_RUNS, min(WARMUP_RUNS, len(runs) - 1), STABLE_RUNS)
    return next((end for end in ends if is_stable(runs[:end])), min(WARMUP_RUNS, len(runs) - 1))
