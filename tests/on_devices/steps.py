"""A session on a device that stops at a step, for whatever is to happen there.

    python steps.py DEVICE MODEL STEP

stops for good, for whoever kills it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from edgeprune.devices import Workload, connect
from edgeprune.devices.folder import Folder
from edgeprune.devices.transport import Ended, Stream

STEPS = ("lock", "push", "run", "pull")
# Of what is pushed: by then a part of it is there.
PART = 1 << 20


def session(device: str, model: Path, setting: Path, step: str, act: Callable[[], None]) -> None:
    """Measure a file, with a setting changed meanwhile, and do ``act`` once at the step."""
    load = Workload("a", model, torch.load(model.with_suffix(".inputs")))
    with _stopping(step, act), connect(device) as opened:
        folder: Folder = opened._folder  # type: ignore[attr-defined]
        there = str(setting)
        assert folder.change("setting", ["touch", there], ["rm", there])
        if step == "lock":
            act()
        # So long that the runner is met at work; an emulated one takes its time.
        opened.measure_in_turns([load], rounds=2, seconds=3.0 if step == "run" else 0.0)


@contextmanager
def _stopping(step: str, act: Callable[[], None]) -> Iterator[None]:
    """Patches the folder's methods; what they do, they do."""
    pending = [act]

    def once() -> None:
        if pending:
            pending.pop()()

    run, get, put = Folder.run, Folder.get, Folder.put

    def running(self: Folder, words: Sequence[str], limit_s: float, tell: Any = None) -> Ended:
        return run(self, words, limit_s, lambda line: once())

    def getting(self: Folder, name: str, local: Path) -> None:
        once()
        get(self, name, local)

    def putting(self: Folder, local: Path, place: str, what: str = "") -> None:
        if not what.endswith(".pte"):
            return put(self, local, place, what)
        start = self.transport.start

        def starting(words: Sequence[str]) -> Stream:
            stream = start(words)
            write = stream.write

            def writing(data: bytes) -> None:
                write(data[: PART // 2])
                once()
                write(data[PART // 2 :])

            stream.write = writing  # type: ignore[method-assign]
            return stream

        with mock.patch.object(self.transport, "start", starting):
            return put(self, local, place, what)

    patches = {"run": ("run", running), "pull": ("get", getting), "push": ("put", putting)}
    if step not in patches:
        yield
        return
    with mock.patch.object(Folder, *patches[step]):
        yield


def _stop() -> None:
    print("here", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    session(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], _stop)
