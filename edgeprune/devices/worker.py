"""The process that runs lowered files: one JSON job a line in, one JSON answer a line out.

Apart from the main process so that processors are pinned before the runtime makes its threads,
that memory is counted from a clean start, and that a file which makes the runtime abort takes
only this process with it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from edgeprune.devices import protocol
from edgeprune.devices.runtimes import RUNTIMES, Method, Runtime, runtime_of
from edgeprune.devices.state import moment


class Worker:
    """Loaded methods by name, and the jobs on them."""

    def __init__(self, answers: TextIO, threads: int) -> None:
        self.answers = answers
        self.methods: dict[str, Method] = {}
        self._threads = threads
        self._runtimes: dict[str, Runtime] = {}

    def say(self, **message: Any) -> None:
        """One line to the parent."""
        self.answers.write(json.dumps(message) + "\n")
        self.answers.flush()

    def load(self, name: str, path: str, signature: str = "") -> dict[str, Any]:
        """Load a file's forward method, or a signature, and keep it; answers ``load_ms``."""
        runtime = self._runtime(path)
        self.say(event="loading", path=path)
        # Ours took 130 ms with all that finds it; the file after it 0.2.
        load = runtime.prepare(path, signature)
        started = time.perf_counter()
        self.methods[name] = load()
        elapsed = time.perf_counter() - started
        self.say(event="loaded", path=path)
        return {"load_ms": elapsed * 1e3}

    def run(self, name: str, inputs: list[str], outputs: str) -> dict[str, Any]:
        """Run each row of the ``.npy`` inputs at batch 1; stack the rows of every output.

        Output ``i`` is written to ``outputs`` with ``{i}`` filled in; answers their ``count``.
        """
        columns = [np.load(path) for path in inputs]
        method, rows = self.methods[name], []
        for row in range(len(columns[0])):
            run = method.bind([column[row : row + 1] for column in columns])
            rows.append([np.asarray(result) for result in run()])
        for number, column in enumerate(zip(*rows, strict=True)):
            np.save(outputs.format(i=number), np.concatenate(column))
        return {"count": len(rows[0]) if rows else 0}

    def measure(
        self, workloads: list[dict[str, Any]], rounds: int, seconds: float
    ) -> dict[str, Any]:
        """Load all, warm each up until it is stable, then time them in turns.

        Answers the ``files`` by name, and looks at the machine as ``moments``.
        """
        looks = _Looks()
        timed: dict[str, dict[str, Any]] = {}
        runs: dict[str, Callable[[], object]] = {}
        for load in workloads:
            name, inputs = load["name"], _inputs(load["inputs"])
            timed[name] = self.load(name, load["path"], load.get("signature", ""))
            runs[name] = self.methods[name].bind(inputs)
            timed[name]["first_run_ms"] = _time_ms(runs[name])
            timed[name]["samples_ms"] = []
        gc.collect()
        gc.disable()
        for name, run in runs.items():
            timed[name]["warmup_runs"] = _warm_up(run)
        until, done = time.perf_counter() + seconds, 0
        while done < rounds or (time.perf_counter() < until and done < protocol.MOST_RUNS):
            done += 1
            looks.if_due()
            for name, run in runs.items():
                timed[name]["samples_ms"].append(round(_time_ms(run), 5))
        looks.take()
        gc.enable()
        self.methods.clear()
        return {"files": timed, "moments": looks.moments}

    def memory(self, path: str, inputs: str, signature: str = "") -> dict[str, Any]:
        """Peak resident memory from before loading through three runs, in MB."""
        values = _inputs(inputs)
        self._runtime(path).prepare(path)  # libraries are not the model's
        _forget(path)
        gc.collect()
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        before = _status_kb("VmRSS")
        self.load("memory", path, signature)
        run = self.methods["memory"].bind(values)
        for _ in range(3):
            run()
        return {"peak_memory_mb": max(0, _status_kb("VmHWM") - before) / 1024}

    def profile(self, path: str, inputs: str, runs: int, signature: str = "") -> dict[str, Any]:
        """Median milliseconds and calls per run of every event, from the runtime's own trace."""
        self.load("profile", path, signature)
        events = self._runtime(path).trace(path, _inputs(inputs), runs, signature)
        return {"events": [event._asdict() for event in events]}

    def _runtime(self, path: str) -> Runtime:
        """The runtime of a file, its libraries loaded when its first file comes."""
        suffix = runtime_of(path)
        if suffix not in self._runtimes:
            self._runtimes[suffix] = RUNTIMES[suffix](self._threads)
        return self._runtimes[suffix]


def _inputs(path: str) -> list[np.ndarray]:
    """The arrays of an ``.npz`` file, in the order of their names."""
    with np.load(path) as held:
        return [held[name] for name in sorted(held.files)]


def _forget(path: str) -> None:
    """Let the system read the file anew: of a mapped file, how much comes into memory depends on
    what lay there already. An int8 MiniLM in LiteRT took 36 to 71 MB."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _time_ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _warm_up(run: Callable[[], object]) -> int:
    """Run until it is stable, or for two seconds; answers how often."""
    until = time.perf_counter() + protocol.WARMUP_LIMIT_S
    taken = [_time_ms(run) for _ in range(protocol.WARMUP_RUNS)]
    while time.perf_counter() < until and not protocol.is_stable(taken):
        taken += [_time_ms(run) for _ in range(protocol.STABLE_RUNS)]
    return len(taken)


class _Looks:
    """At clock and temperature, the first now; between runs and seldom, for each reads files."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._cpu = min(os.sched_getaffinity(0))
        self.moments: list[dict[str, float | None]] = []
        self.take()

    def if_due(self) -> None:
        """One if the last is a second ago."""
        if time.perf_counter() >= self._due:
            self.take()

    def take(self) -> None:
        """One now."""
        at_s = time.perf_counter() - self._started
        self.moments.append(vars(moment(self._cpu, at_s)))
        self._due = time.perf_counter() + protocol.MOMENT_S


def _status_kb(key: str) -> int:
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0


def _is_full(error: Exception) -> bool:
    """Whether the disk was."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in full


def _end_with(parent: int) -> None:
    """End when the main process does, however it ended and whatever runs here just then."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> None:
    """Pin, then answer jobs until standard input closes.

    Args:
        argv: processors as ``0,1``, and the number of threads of a runtime.
    """
    os.sched_setaffinity(0, {int(cpu) for cpu in argv[0].split(",")})
    # The libraries print; answers get the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _end_with(os.getppid())
    worker = Worker(answers, int(argv[1]))
    worker.say(event="ready")
    for line in sys.stdin:
        job = json.loads(line)
        try:
            worker.say(result=getattr(worker, job.pop("job"))(**job))
        except Exception as error:
            worker.say(error=f"{type(error).__name__}: {error}", full=_is_full(error))


if __name__ == "__main__":
    main(sys.argv[1:])
