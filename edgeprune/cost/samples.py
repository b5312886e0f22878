"""Samples: lowered pieces timed on a device in turns with the dense model, kept as they come."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune import files
from edgeprune.cache import cache_dir
from edgeprune.console import Advance, progress
from edgeprune.cost.memory import working_set_bytes
from edgeprune.cost.plans import DENSE
from edgeprune.devices.device import Device, Workload
from edgeprune.devices.measurement import Measurement
from edgeprune.errors import InputError
from edgeprune.lower import lower_graph
from edgeprune.lower.lowering import Lowering
from edgeprune.program.graph import op_name, shape
from edgeprune.program.program import Program

log = logging.getLogger(__name__)

ROUNDS = 60
BATCH = 8
# The fastest runs say what the code takes; the others, what else the machine was doing.
FASTEST_SHARE = 0.1
FEWEST_RUNS = 3
# A quiet device's median is within 5% of its fastest runs; a busy one's was 3 times them.
CALM = 1.1
TRIES = 3

Lowerable = tuple[torch.fx.GraphModule, tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Point:
    """Something to lower and time.

    Attributes:
        name: unique; says everything that its cost depends on.
        build: makes the module and its inputs; None stands for the dense model.
        memory: measure its peak memory too.
    """

    name: str
    build: Callable[[], Lowerable] | None
    memory: bool = False


@dataclass(frozen=True)
class Sample:
    """What a point took.

    Attributes:
        samples_ms: its runs; ``dense_ms``: those of the dense model in the same batch.
        size_bytes: of the file.
        working_set_bytes: of the tensors alive at once, at most.
        peak_memory_mb: None if not asked for.
        date: ISO 8601.
    """

    samples_ms: tuple[float, ...]
    dense_ms: tuple[float, ...]
    size_bytes: int
    working_set_bytes: int
    peak_memory_mb: float | None
    date: str

    @property
    def ratio(self) -> float:
        """Latency over the dense model's."""
        return fastest_ms(self.samples_ms) / fastest_ms(self.dense_ms)


Samples = dict[str, Sample]


def fastest_ms(samples_ms: Sequence[float]) -> float:
    """The mean of the fastest tenth of the runs, at least three."""
    count = min(len(samples_ms), max(FEWEST_RUNS, int(FASTEST_SHARE * len(samples_ms))))
    return float(np.sort(samples_ms)[:count].mean())


def measure_calmly(
    device: Device, loads: Sequence[Workload], rounds: int
) -> dict[str, Measurement]:
    """Timed in turns; again, a few times, while something else keeps the device busy."""
    tries = []
    for _ in range(TRIES):
        found = device.measure_in_turns(loads, rounds)
        runs = [each.samples_ms for each in found.values()]
        tries.append((max(float(np.median(each)) / fastest_ms(each) for each in runs), found))
        if tries[-1][0] <= CALM:
            return found
    restless, found = min(tries, key=lambda each: each[0])
    log.warning(
        "costs: the device was busy in %d tries; a median was %.0f%% above its fastest runs. Stop "
        "other work on it, and measure again.",
        *(TRIES, 100 * (restless - 1)),
    )
    return found


def samples_file(program: Program, device: Device, lowering: Lowering) -> Path:
    """Where samples are kept: by graph (not weights), lowering, device, versions and code."""
    state = device.state()
    ran_by = (device.name, state.cpu_model, state.threads)
    return kept_samples(program, lowering, ran_by, state.versions)


def kept_samples(program: Program, lowering: Lowering, *ran_by: object) -> Path:
    """Where samples are kept that ``ran_by`` took, or estimated."""
    calls = [
        (op_name(node), node.name, shape(node), str(node.args), str(node.kwargs))
        for node in program.module.graph.nodes
    ]
    package = Path(files.__file__).parent
    rooms = ("program", "surgery", "lower")
    code = [path for room in rooms for path in sorted((package / room).glob("*.py"))]
    key = files.content_hash(
        calls,
        vars(lowering),
        *ran_by,
        [files.sha256_of(path) for path in code],
    )
    return cache_dir() / "cost" / f"samples-{key}.json"


def read_samples(path: Path) -> Samples:
    """The samples of a file; none if it is not there, or cannot be read."""
    try:
        held = files.read_json(path, "cost-samples")["samples"]
        return {name: _sample(body) for name, body in held.items()}
    except (InputError, TypeError, KeyError):
        return {}


def _sample(body: dict[str, Any]) -> Sample:
    runs = {key: tuple(body[key]) for key in ("samples_ms", "dense_ms")}
    return Sample(**body | runs)


class Sampler:
    """Takes samples, batch by batch, each kept at once: what was stopped goes on from there.

    Args:
        path: where samples are kept.
        names: of all points that may be asked for, to tell the time left at most.

    Attributes:
        taken: what was asked for so far, by name.
    """

    def __init__(
        self,
        program: Program,
        device: Device,
        lowering: Lowering,
        path: Path,
        names: Collection[str],
    ) -> None:
        self.path, self.known = path, read_samples(path)
        self.most = sum(name not in self.known for name in names)
        self.taken: Samples = {}
        self._open_session = partial(_Session, program, device, lowering)
        self._session: _Session | None = None
        self._advance: Advance | None = None
        self._open = ExitStack()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *reason: object) -> None:
        self._open.close()
        if kind and self.known:
            log.warning(
                "costs: measuring stopped; %d measured files are kept, and the same command goes "
                "on from there",
                len(self.known),
            )

    def take(self, points: Sequence[Point], note: str = "") -> None:
        """Measure what is not known yet.

        Args:
            note: shown beside the progress.

        Raises:
            EdgepruneError: a piece cannot be lowered, or the device failed.
        """
        missing = [point for point in points if point.name not in self.known]
        for start in range(0, len(missing), BATCH):
            session, advance = self._started()
            batch = missing[start : start + BATCH]
            self.known |= session.measure(batch, partial(_tell, advance, note))
            body = {name: vars(sample) for name, sample in self.known.items()}
            files.write_json(self.path, "cost-samples", {"samples": body})
        self.taken |= {point.name: self.known[point.name] for point in points}

    def _started(self) -> tuple[_Session, Advance]:
        """The session and its progress; nothing is lowered where all is known."""
        if self._session is None or self._advance is None:
            folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="edgeprune-"))
            bar = progress("measuring costs", self.most, "files")
            self._advance = self._open.enter_context(bar)
            self._session = self._open_session(Path(folder))
        return self._session, self._advance


def _tell(advance: Advance, note: str, name: str) -> None:
    advance(1, f"{note} {name}".lstrip())


class _Session:
    """The dense model lowered once, beside which every batch is timed."""

    def __init__(self, program: Program, device: Device, lowering: Lowering, folder: Path) -> None:
        self.device, self.lowering, self.folder = device, lowering, folder
        inputs = tuple(each[:1].contiguous() for each in program.example_inputs)
        self.dense = self._lowered(DENSE, (program.module, inputs))

    def measure(self, points: Sequence[Point], tell: Callable[[str], None]) -> Samples:
        """Lower the points, time them and the dense model in turns."""
        loads: dict[str, Workload] = {}
        alive: dict[str, int] = {}
        for number, point in enumerate(points):
            loads[point.name], alive[point.name] = self.dense, 0
            if point.build is not None:
                module, inputs = point.build()
                loads[point.name] = self._lowered(str(number), (module, inputs))
                alive[point.name] = working_set_bytes(module, inputs)
            tell(point.name)
        distinct = {load.name: load for load in (self.dense, *loads.values())}
        measured = measure_calmly(self.device, list(distinct.values()), ROUNDS)
        samples = {}
        for point in points:
            load = loads[point.name]
            peak = self._weighed(load) if point.memory else None
            samples[point.name] = Sample(
                samples_ms=_rounded(measured[load.name].samples_ms),
                dense_ms=_rounded(measured[DENSE].samples_ms),
                size_bytes=load.path.stat().st_size,
                working_set_bytes=alive[point.name],
                peak_memory_mb=peak,
                date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            )
        return samples

    def _weighed(self, load: Workload) -> float | None:
        found = self.device.measure_in_turns([load], 1, memory=True, seconds=0.0)
        return found[load.name].peak_memory_mb

    def _lowered(self, name: str, lowerable: Lowerable) -> Workload:
        module, inputs = lowerable
        path = self.folder / f"{name}{self.lowering.suffix}"
        files.write_bytes(path, lower_graph(module, inputs, self.lowering).data)
        return Workload(name, path, inputs)


def _rounded(samples_ms: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(each, 5) for each in samples_ms)
