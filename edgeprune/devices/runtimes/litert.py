"""LiteRT in the worker."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import partial
from itertools import count, takewhile

import numpy as np

from edgeprune.devices.runtimes.runtime import OURS, Event, Run, register

WARMUP_RUNS = 3
REST = "all that is not listed, by difference"
# What XNNPACK has instead of our operators, and around them.
_INSTEAD = {
    *("bmm", "softmax", "mean", "squared_difference", "rsqrt", "sub", "mul", "add"),
    *("transpose", "reshape", "div"),
}


class _Time(ctypes.Structure):
    """``Time`` of delegate.cc."""

    _fields_ = (("name", c_char_p), ("nanoseconds", c_int64), ("calls", c_int64))


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
        them. Ours are timed by the delegate itself, in other runs; what those take besides them
        and the profiler's other operators is one event.
        """
        from edgeprune.devices.runtimes.litert_trace import CompiledModel

        method = self.prepare(path)()
        try:
            model = CompiledModel(path, self._threads)
            events = model.trace(method.narrowed(inputs), method.empty_outputs(), runs)
        except RuntimeError:
            # Of some files with composites the compiled model loses a tensor; no interpreter does.
            if not method.delegates:
                raise
            events = []
        if not method.delegates:
            return events
        whole_ms, ours = method.trace(inputs, runs)
        linears = any(event.op == "linear" for event in ours)
        others = [
            event
            for event in events
            if event.op not in _INSTEAD and not (linears and "QC8W" in event.event)
        ]
        rest_ms = whole_ms - sum(event.ms for event in (*ours, *others))
        return [*ours, *others, Event("other", REST, "xnnpack", max(rest_ms, 0.0), 1)]


def _event(name: str, ms: float, calls: int) -> Event:
    return Event(OURS[name.removeprefix("edgeprune.")], name, "edgeprune", ms, calls)


class LitertMethod:
    """A ``.tflite`` in the interpreter that apps use."""

    def __init__(self, path: str, threads: int, delegates: Sequence[str]) -> None:
        from ai_edge_litert.interpreter import Interpreter, load_delegate

        self.delegates = [load_delegate(library) for library in delegates]
        self._interpreter = Interpreter(
            path, num_threads=threads, experimental_delegates=self.delegates
        )
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

    def trace(self, inputs: Sequence[np.ndarray], runs: int) -> tuple[float, list[Event]]:
        """What a run takes in ms, and our operators of it; medians over runs."""
        run, (delegate,) = self.bind(inputs), self.delegates
        look = delegate._library.ep_litert_time
        look.argtypes, look.restype = [c_void_p, c_int32], POINTER(_Time)
        places = (look(delegate._get_native_delegate_pointer(), op) for op in count())
        times = [place.contents for place in takewhile(bool, places)]
        samples = []
        for _ in range(WARMUP_RUNS + runs):
            for each in times:
                each.nanoseconds = each.calls = 0
            started = time.perf_counter()
            run()
            whole = time.perf_counter() - started
            samples.append([whole * 1e3, *(each.nanoseconds / 1e6 for each in times)])
        whole_ms, *ours_ms = np.median(samples[WARMUP_RUNS:], axis=0).tolist()
        return whole_ms, [
            _event(each.name.decode(), ms, each.calls)
            for each, ms in zip(times, ours_ms, strict=True)
            if each.calls
        ]

    def narrowed(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs as the file takes them: int32 where the program has int64."""
        return [
            np.ascontiguousarray(value, slot["dtype"])
            for slot, value in zip(self._inputs, inputs, strict=True)
        ]

    def empty_outputs(self) -> list[np.ndarray]:
        """Room for the outputs."""
        return [np.zeros(slot["shape"], slot["dtype"]) for slot in self._outputs]
