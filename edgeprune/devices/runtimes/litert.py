"""LiteRT in the worker."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from edgeprune.devices.runtimes.runtime import Event, Run, register

COMPOSITES = "attention, layer norms, and sums and reshapes between them"
WARMUP_RUNS = 3
_IN_COMPOSITES = {
    *("bmm", "softmax", "mean", "squared_difference", "rsqrt", "sub", "mul", "add"),
    *("transpose", "reshape", "div"),
}


@register(".tflite")
class Litert:
    """The runtime; XNNPACK gets what it takes, as LiteRT does by itself."""

    def __init__(self, threads: int) -> None:
        # Loaded before anything is timed or weighed.
        import ai_edge_litert.interpreter
        import ai_edge_litert.schema_py_generated  # noqa: F401

        self._threads = threads

    def prepare(self, path: str) -> Callable[[], LitertMethod]:
        """See ``Runtime.prepare``."""
        from edgeprune.kernels.load import libraries_for_litert

        libraries = [str(library) for library in libraries_for_litert(path)]
        for library in libraries:
            ctypes.CDLL(library)
        return partial(LitertMethod, path, self._threads, libraries)

    def trace(self, path: str, inputs: Sequence[np.ndarray], runs: int) -> list[Event]:
        """See ``Runtime.trace``.

        The profiler cannot take our delegate along: it sees composites as the operators inside
        them. Those and their like are one event here, what a run with our delegate takes besides
        all others.
        """
        from edgeprune.devices.runtimes.litert_trace import CompiledModel

        method = self.prepare(path)()
        model = CompiledModel(path, self._threads)
        events = model.trace(method.narrowed(inputs), method.empty_outputs(), runs)
        if not method.composites:
            return events
        others = [event for event in events if event.op not in _IN_COMPOSITES]
        ms = _median_ms(method.bind(inputs), runs) - sum(event.ms for event in others)
        return [*others, Event("attention", COMPOSITES, "edgeprune", max(ms, 0.0), 1)]


def _median_ms(run: Run, runs: int) -> float:
    taken = []
    for _ in range(WARMUP_RUNS + runs):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[WARMUP_RUNS:]) * 1e3


class LitertMethod:
    """A ``.tflite`` in the interpreter that apps use."""

    def __init__(self, path: str, threads: int, delegates: Sequence[str]) -> None:
        from ai_edge_litert.interpreter import Interpreter, load_delegate

        ours = [load_delegate(library) for library in delegates]
        self.composites = bool(ours)
        self._interpreter = Interpreter(path, num_threads=threads, experimental_delegates=ours)
        self._interpreter.allocate_tensors()
        # In the program's order, as the converter writes them; a signature sorts them by name.
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()

    def bind(self, inputs: Sequence[np.ndarray]) -> Run:
        """See ``Method.bind``."""
        interpreter, values = self._interpreter, self.narrowed(inputs)
        feeds = [(slot["index"], value) for slot, value in zip(self._inputs, values, strict=True)]
        fetched = [slot["index"] for slot in self._outputs]

        def run() -> list[np.ndarray]:
            for number, value in feeds:
                interpreter.set_tensor(number, value)
            interpreter.invoke()
            return [interpreter.get_tensor(number) for number in fetched]

        return run

    def narrowed(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs as the file takes them: int32 where the program has int64."""
        return [
            np.ascontiguousarray(value, slot["dtype"])
            for slot, value in zip(self._inputs, inputs, strict=True)
        ]

    def empty_outputs(self) -> list[np.ndarray]:
        """Room for the outputs."""
        return [np.zeros(slot["shape"], slot["dtype"]) for slot in self._outputs]
