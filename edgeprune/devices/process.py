"""Our end of a worker: start it, ask it, and never leave it behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from edgeprune.errors import EdgepruneError, InputError

START_LIMIT_S = 120.0


class WorkerProcess:
    """A worker pinned to ``affinity``, for use in a ``with`` block.

    Leaving the block, a time-out and Ctrl-C all kill its whole process group.
    """

    def __init__(self, affinity: tuple[int, ...], threads: int) -> None:
        self._affinity = affinity
        self._threads = threads
        self._loading: str | None = None
        self._buffer = b""

    def __enter__(self) -> WorkerProcess:
        self._stderr = tempfile.TemporaryFile()
        cpus = ",".join(map(str, self._affinity))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeprune.devices.worker", cpus, str(self._threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
            env=os.environ | self._environment(),
        )
        try:
            self._read("ready", START_LIMIT_S)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        self.kill()

    def _environment(self) -> dict[str, str]:
        # torch copies tensors above 32,768 elements with OpenMP; its idle threads spin, and on one
        # pinned processor every run then waits for the scheduler's next 4 ms.
        threads = {"OMP_NUM_THREADS": str(self._threads), "MKL_NUM_THREADS": str(self._threads)}
        return threads | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def kill(self) -> None:
        """End the worker and all it started; harmless when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def ask(self, job: str, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """Do one job and wait for its answer.

        Raises:
            InputError: the runtime refused a file, or died of it.
            EdgepruneError: the job failed otherwise, or took longer than ``limit_s``.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"job": job, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died(job) from None
        answer: dict[str, Any] = self._read(job, limit_s)
        return answer

    def _read(self, job: str, limit_s: float) -> Any:
        deadline = time.monotonic() + limit_s
        while True:
            message = json.loads(self._line(job, deadline, limit_s))
            if message.get("event") == "ready":
                return None
            if message.get("event") == "loading":
                self._loading = message["path"]
            elif message.get("event") == "loaded":
                self._loading = None
            elif "error" in message:
                raise self._failed(job, message["error"], message["full"])
            elif "result" in message:
                return message["result"]

    def _line(self, job: str, deadline: float, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise EdgepruneError(
                        f"local: {job} did not finish within {limit_s:.0f} s and was stopped. "
                        "Is the machine overloaded?"
                    )
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._died(job)
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _failed(self, job: str, reason: str, full: bool) -> EdgepruneError:
        path, self._loading = self._loading, None
        if full:
            folder = tempfile.gettempdir()
            return InputError(f"local: {job}: writing failed ({reason}). Make room in {folder}.")
        if path is not None:
            return self._refused(path, reason)
        return EdgepruneError(f"local: {job} failed: {reason}", detail=self._complaints())

    def _died(self, job: str) -> EdgepruneError:
        code = self._process.wait()
        how = f"ended with code {code}" if code >= 0 else f"died of {signal.Signals(-code).name}"
        if self._loading is not None:
            return self._refused(self._loading, f"it {how}")
        return EdgepruneError(f"local: the runtime {how} during {job}", detail=self._complaints())

    def _refused(self, path: str, reason: str) -> InputError:
        return InputError(
            f"{path}: the runtime could not load it ({reason}). "
            "Was the file cut short, or made for another version? Lower the program again.",
            detail=self._complaints(),
        )

    def _complaints(self) -> str:
        """The end of what the worker and its libraries printed."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-4000:]
