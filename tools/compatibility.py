"""Which releases of the runtimes load our files, run them right, how fast: docs/compatibility.md.

    python tools/compatibility.py           # runs all, and writes the table anew

Every file is run in every release, each in a process and a Python environment of its own, with our
library and without. Environments are installed once into the cache: 2 GB, and twice 5 GB for the
torch that ExecuTorch before 1.4 is linked with.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import torch
from _bench import machine

from edgeprune import console, files
from edgeprune.devices import tflite_runtime
from edgeprune.devices.environment import Environment, clean, here
from edgeprune.errors import EdgepruneError
from edgeprune.kernels.build import build_library
from edgeprune.lower import Lowering, lower
from edgeprune.program import Program, capture
from edgeprune.task import load_task
from edgeprune.validate.numerics import compare

CELL = Path(__file__).with_name("_compatibility_cell.py")
TABLE = Path(__file__).parents[1] / "docs" / "compatibility.md"
LIMIT_S = 300.0
ROUNDS, EXAMPLES = 30, 8
# Which torch the Python module of a release is linked with, where it is not the one of here.
TORCH = {"1.0.1": "2.9.1", "1.1.0": "2.12.1", "1.2.0": "2.12.1", "1.3.1": "2.12.1"}
HEAD = """# Compatibility

Which releases load our files, whether they compute what the model does, and how fast. Made by
`tools/compatibility.py`, which writes this page anew; a test holds what it says about loading and
being right against fresh runs.

{model}, {day}, {cpu}, {cores} cores that other work shared (load {load:.1f}).
The milliseconds are processor time on one thread, medians of {rounds} runs, those of one runtime
and precision in turns. Compare them along a row and down a column, not with other pages.

- **off**, **auto**: as lowered with `--delegate`. **with**, **without**: our library loaded or not.
- **right**: fp32 within 1e-4 of the model's largest output, int8 at a cosine of 0.99 or more, for
  every example. **wrong**: runs, and is not. **no**: does not run; the number is the reason's.

{table}

{reasons}

ExecuTorch is run by its Python module: 1.0 with torch 2.9.1, 1.1 to 1.3 with 2.12.1, later ones
with the torch that is installed here. Wheels before 1.5 bring nothing to build our library against.
`libedgeprune_litert.so` is one file for all releases.
"""
NOISE = ("cpuinfo", "INFO:", "WARNING", "Resetting threadpool")


@dataclass(frozen=True)
class Release:
    """A runtime at one version; without an environment, the one that is installed here."""

    runtime: str
    name: str
    environment: Environment | None = None

    def python(self) -> Path:
        return self.environment.python() if self.environment else Path(sys.executable)

    def library(self) -> Path:
        """Ours, built against this release where that is needed."""
        if self.runtime == "litert" or self.environment is None:
            return build_library(self.runtime)
        try:
            return build_library("executorch", sdk=self.environment.packages() / "executorch")
        except EdgepruneError as error:
            raise EdgepruneError(f"our library cannot be built against it: {error}") from error


def _releases() -> Iterator[Release]:
    yield Release("executorch", "executorch 1.5.1")
    for version in ("1.5.0", "1.4.1", "1.3.1", "1.2.0", "1.1.0", "1.0.1"):
        lender = here
        if version in TORCH:
            lender = Environment("torch", TORCH[version], ("numpy",)).packages
        environment = Environment("executorch", version, lent_by=lender)
        yield Release("executorch", f"executorch {version}", environment)
    yield Release("litert", "ai-edge-litert 2.3.0")
    for version in ("2.2.0", "2.1.6", "2.0.3", "1.4.0", "1.3.0", "1.2.0", "1.1.2"):
        environment = Environment("ai-edge-litert", version, lent_by=here)
        yield Release("litert", f"ai-edge-litert {version}", environment)
    # It was compiled for numpy 1.
    oldest = Environment("ai-edge-litert", "1.0.1", ("numpy<2",))
    yield Release("litert", "ai-edge-litert 1.0.1", oldest)
    yield Release("litert", "tflite-runtime 2.14.0", tflite_runtime.ENVIRONMENT)


RELEASES = tuple(_releases())


@dataclass(frozen=True)
class Way:
    """How a file was lowered, and whether our library is loaded with it."""

    precision: str
    delegate: str
    with_library: bool

    def __str__(self) -> str:
        if self.delegate == "off":
            return f"{self.precision}, off"
        return f"{self.precision}, auto, {'with' if self.with_library else 'without'}"


WAYS = tuple(
    Way(precision, *how)
    for precision in ("fp32", "int8")
    for how in (("off", False), ("auto", True), ("auto", False))
)


class Cell:
    """A file in a release: a process that has run all examples, or the reason why it could not."""

    def __init__(
        self, release: Release, way: Way, file: Path, program: Program, folder: Path
    ) -> None:
        self.release, self.way = release, way
        self.samples_ms: list[float] = []
        self.reason = self.verdict = ""
        self._process: subprocess.Popen[str] | None = None
        try:
            found = self._start(file, program, folder)
            numerics = compare(program, program.example_inputs, found, (), way.precision)  # type: ignore[arg-type]
            self.verdict = "right" if numerics.outputs_agree else "wrong"
            if not numerics.outputs_agree:
                what = "cosine" if way.precision == "int8" else "off by"
                self.reason = f"runs without a word, {what} {numerics.worst:.2g}"
        except EdgepruneError as error:
            self.verdict, self.reason = "no", files.without_folders(str(error))

    def _start(self, file: Path, program: Program, folder: Path) -> tuple[torch.Tensor, ...]:
        given, found = (Path(folder, name) for name in ("inputs.npz", "outputs.npz"))
        np.savez(given, *(each.numpy() for each in program.example_inputs))
        library = [str(self.release.library())] if self.way.with_library else []
        errors = Path(folder, "errors")
        with errors.open("w") as stream:
            self._process = subprocess.Popen(
                [
                    str(self.release.python()),
                    str(CELL),
                    str(file),
                    str(given),
                    str(found),
                    *library,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=clean() | {"OMP_NUM_THREADS": "1"},
            )
        if self._line() != "ready":
            raise EdgepruneError(_first_words(errors.read_text(), self._process.wait()))
        with np.load(found) as held:
            return tuple(torch.from_numpy(held[name]) for name in sorted(held.files))

    def time(self) -> None:
        """One more run, if it runs at all."""
        if self.verdict != "no":
            assert self._process is not None and self._process.stdin is not None
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            self.samples_ms.append(float(self._line()))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        timer = threading.Timer(LIMIT_S, self._process.kill)
        timer.start()
        try:
            return self._process.stdout.readline().strip()
        finally:
            timer.cancel()


def _first_words(errors: str, code: int) -> str:
    """Why a process ended: the runtime's own words, before those of its Python module."""
    lines = [line for line in errors.splitlines() if not any(word in line for word in NOISE)]
    own = [re.sub(r"^\[\S+:\d+\] ", "", line) for line in lines if re.match(r"\[\S+:\d+\]", line)]
    last = [line for line in lines if line and not line.startswith((" ", "Traceback"))][-1:]
    how = f"died of {signal.Signals(-code).name}" if code < 0 else "no reason given"
    return (own[:1] or last or [how])[0][:160]


def run_all(
    program: Program, releases: Sequence[Release], rounds: int = ROUNDS
) -> dict[tuple[str, str], Cell]:
    """(release, way) -> what came of it. Files of one runtime and precision take turns."""
    found = {}
    for runtime, precision in product(("executorch", "litert"), ("fp32", "int8")):
        own = [release for release in releases if release.runtime == runtime]
        ways = [way for way in WAYS if way.precision == precision]
        with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
            folder, lowered = Path(name), {}
            for delegate in ("off", "auto") if own else ():
                how = Lowering(precision, runtime, delegate)  # type: ignore[arg-type]
                lowered[delegate] = lower(program, folder / f"{delegate}{how.suffix}", how).path
            cells = []
            for release, way in product(own, ways):
                cell = Cell(release, way, lowered[way.delegate], program, folder)
                opened.callback(cell.close)
                console.say(f"{release.name}, {way}: {cell.verdict} {cell.reason}")
                cells.append(cell)
            for _ in range(rounds):
                for cell in cells:
                    cell.time()
            found |= {(cell.release.name, str(cell.way)): cell for cell in cells}
    return found


def page(found: dict[tuple[str, str], Cell], model: str) -> str:
    """The table as Markdown, with the reasons below it."""
    host, reasons = machine(), dict.fromkeys(c.reason for c in found.values() if c.reason)
    numbers = {reason: number for number, reason in enumerate(reasons, 1)}
    rows = []
    for release in dict.fromkeys(name for name, _ in found):
        cells = [found[release, str(way)] for way in WAYS]
        words = [_words(cell, numbers) for cell in cells]
        rows.append(f"| {release} | {' | '.join(words)} |")
    head = f"| release | {' | '.join(map(str, WAYS))} |"
    return HEAD.format(
        model=model,
        day=date.today(),
        cpu=host["cpu"],
        cores=host["cores"],
        load=os.getloadavg()[0],
        rounds=ROUNDS,
        table="\n".join((head, "|---" * (len(WAYS) + 1) + "|", *rows)),
        reasons="\n".join(f"{number}. {reason}" for reason, number in numbers.items()),
    )


def _words(cell: Cell, numbers: dict[str, int]) -> str:
    time = f", {statistics.median(cell.samples_ms):.1f} ms" if cell.samples_ms else ""
    note = f" ({numbers[cell.reason]})" if cell.reason else ""
    return f"{cell.verdict}{note}{time}"


def committed() -> dict[tuple[str, str], str]:
    """(release, way) -> ``right``, ``wrong`` or ``no``, as the page says."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in TABLE.read_text().splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    (_, *ways), *releases = rows
    return {
        (release, way): re.split(r"[ ,]", text)[0]
        for release, *cells in releases
        for way, text in zip(ways, cells, strict=True)
    }


def main() -> None:
    """Run all and write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    task = load_task("minilm-20news")
    examples = tuple(each[:EXAMPLES] for each in next(iter(task.calibration())))
    program = capture(task.model(), examples)
    files.write_text(TABLE, page(run_all(program, RELEASES), "MiniLM-L6 at 128 tokens"))


if __name__ == "__main__":
    main()
