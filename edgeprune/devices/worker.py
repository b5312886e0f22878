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
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

STABLE_RUNS = 5
STABLE_WITHIN = 0.02
WARMUP_LIMIT_S = 2.0


class Worker:
    """Loaded methods by name, and the jobs on them."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.methods: dict[str, Any] = {}

    def say(self, **message: Any) -> None:
        """One line to the parent."""
        self.answers.write(json.dumps(message) + "\n")
        self.answers.flush()

    def load(self, name: str, path: str) -> dict[str, Any]:
        """Load a file's forward method and keep it; answers ``load_ms``."""
        self.say(event="loading", path=path)
        started = time.perf_counter()
        self.methods[name] = Method(path)
        elapsed = time.perf_counter() - started
        self.say(event="loaded", path=path)
        return {"load_ms": elapsed * 1e3}

    def run(self, name: str, inputs: list[str], outputs: str) -> dict[str, Any]:
        """Run each row of the ``.npy`` inputs at batch 1; stack the rows of every output.

        Output ``i`` is written to ``outputs`` with ``{i}`` filled in; answers their ``count``.
        """
        import numpy as np
        import torch

        columns = [torch.from_numpy(np.load(path)) for path in inputs]
        method, rows = self.methods[name], []
        for row in range(len(columns[0])):
            results = method.execute([column[row : row + 1] for column in columns])
            rows.append([result.numpy() for result in results])
        for number, column in enumerate(zip(*rows, strict=True)):
            np.save(outputs.format(i=number), np.concatenate(column))
        return {"count": len(rows[0]) if rows else 0}

    def measure(self, workloads: list[dict[str, Any]], rounds: int, warmup: int) -> dict[str, Any]:
        """Load all, warm each up until it is stable, then time them in turns."""
        timed: dict[str, dict[str, Any]] = {}
        runs: dict[str, Callable[[], object]] = {}
        for load in workloads:
            name, inputs = load["name"], _inputs(load["inputs"])
            timed[name] = self.load(name, load["path"])
            method = self.methods[name]
            runs[name] = partial(method.execute, inputs)
            timed[name]["first_run_ms"] = _time_ms(runs[name])
            timed[name]["samples_ms"] = []
        gc.collect()
        gc.disable()
        for run in runs.values():
            _warm_up(run, warmup)
        for _ in range(rounds):
            for name, run in runs.items():
                timed[name]["samples_ms"].append(_time_ms(run))
        gc.enable()
        self.methods.clear()
        return timed

    def memory(self, path: str, inputs: str) -> dict[str, Any]:
        """Peak resident memory from before loading through three runs, in MB."""
        values = _inputs(inputs)
        gc.collect()
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        before = _status_kb("VmRSS")
        self.load("memory", path)
        for _ in range(3):
            self.methods["memory"].execute(values)
        return {"peak_memory_mb": max(0, _status_kb("VmHWM") - before) / 1024}

    def profile(self, path: str, inputs: str, runs: int) -> dict[str, Any]:
        """Median milliseconds and calls per run of every event, from the runtime's own trace."""
        from executorch.devtools import Inspector

        values = _inputs(inputs)
        self.say(event="loading", path=path)
        method = Method(path, traced=True)
        self.say(event="loaded", path=path)
        for _ in range(runs):
            method.execute(values)
        with tempfile.TemporaryDirectory() as folder:
            trace = os.path.join(folder, "trace.etdump")
            method.program.write_etdump_result_to_file(trace, os.path.join(folder, "debug"))
            frame = Inspector(etdump_path=trace).to_dataframe()
        events: dict[str, dict[str, Any]] = {}
        for event, ms in zip(frame["event_name"], frame["p50 (ms)"], strict=True):
            # A delegate numbers its events of one name.
            name = str(event).partition(" #")[0]
            entry = events.setdefault(name, {"ms": 0.0, "calls": 0})
            entry["ms"] += float(ms)
            entry["calls"] += 1
        return {"events": events}


class Method:
    """A file's forward method."""

    def __init__(self, path: str, traced: bool = False) -> None:
        # The compiled module itself: the wrapper around it imports ExecuTorch's compiler, which
        # takes 3 s and 100 MB. A debug buffer of 1 MB aborted the runtime (1.5.1); timing
        # needs none.
        from executorch.extension.pybindings import _C

        from edgeprune.kernels.load import load_for_executorch

        load_for_executorch(path)
        self.program = _C._load_program(
            path,
            enable_etdump=traced,
            debug_buffer_size=0,
            program_verification=_C.Verification.InternalConsistency,
        )
        self._method = self.program.load_method("forward")

    def execute(self, inputs: list[Any]) -> Any:
        """Run once; the outputs are copies."""
        return self._method.call(inputs)


def _inputs(path: str) -> list[Any]:
    """The tensors of an ``.npz`` file, in the order of their names."""
    import numpy as np
    import torch

    with np.load(path) as held:
        return [torch.from_numpy(held[name]) for name in sorted(held.files)]


def _time_ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


def _warm_up(run: Callable[[], object], least: int) -> None:
    """Run until two medians of five in a row agree within 2%, or for two seconds."""
    until, recent = time.perf_counter() + WARMUP_LIMIT_S, [_time_ms(run) for _ in range(least)]
    while time.perf_counter() < until:
        recent += [_time_ms(run) for _ in range(STABLE_RUNS)]
        now = statistics.median(recent[-STABLE_RUNS:])
        before = statistics.median(recent[-2 * STABLE_RUNS : -STABLE_RUNS] or [0.0])
        if abs(now - before) <= STABLE_WITHIN * now:
            return


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
    """Pin, set the thread pool, then answer jobs until standard input closes.

    Args:
        argv: processors as ``0,1``, and the number of threads.
    """
    os.sched_setaffinity(0, {int(cpu) for cpu in argv[0].split(",")})
    # The libraries print; answers get the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _end_with(os.getppid())
    import torch  # noqa: F401  # the module below links against it
    from executorch.extension.pybindings import _C

    _C._unsafe_reset_threadpool(int(argv[1]))
    worker = Worker(answers)
    worker.say(event="ready")
    for line in sys.stdin:
        job = json.loads(line)
        try:
            worker.say(result=getattr(worker, job.pop("job"))(**job))
        except Exception as error:
            worker.say(error=f"{type(error).__name__}: {error}", full=_is_full(error))


if __name__ == "__main__":
    main(sys.argv[1:])
