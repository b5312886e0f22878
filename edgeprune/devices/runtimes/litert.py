"""LiteRT in the worker."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from functools import partial
from itertools import count, takewhile

import numpy as np

from edgeprune.devices.runtimes.runtime import OURS, Event, Run, register
from edgeprune.errors import InputError

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

    def prepare(self, path: str, signature: str = "") -> Callable[[], LitertMethod]:
        """See ``Runtime.prepare``.

        Raises:
            InputError: the file has no such signature.
        """
        from edgeprune.kernels.load import libraries_for_litert

        libraries = [str(library) for library in libraries_for_litert(path)]
        for library in libraries:
            ctypes.CDLL(library)
        if signature:
            return partial(SignatureMethod, path, self._threads, libraries, signature)
        return partial(LitertMethod, path, self._threads, libraries)

    def trace(
        self, path: str, inputs: Sequence[np.ndarray], runs: int, signature: str = ""
    ) -> list[Event]:
        """See ``Runtime.trace``.

        The profiler cannot take our delegate along: it sees composites as the operators inside
        them. Ours are timed by the delegate itself, in other runs; what those take besides them
        and the profiler's other operators is one event.
        """
        from edgeprune.devices.runtimes.litert_trace import CompiledModel

        method = self.prepare(path, signature)()
        try:
            model = CompiledModel(path, self._threads, method.number)
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

    number = 0
    """Of its signature in the file."""

    def __init__(self, path: str, threads: int, delegates: Sequence[str]) -> None:
        self._open(path, threads, delegates)
        self._interpreter.allocate_tensors()
        # In the program's order, as the converter writes them; a signature sorts them by name.
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()

    def _open(self, path: str, threads: int, delegates: Sequence[str]) -> None:
        from ai_edge_litert.interpreter import Interpreter, load_delegate

        self.delegates = [load_delegate(library) for library in delegates]
        self._interpreter = Interpreter(
            path, num_threads=threads, experimental_delegates=self.delegates
        )

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


class SignatureMethod(LitertMethod):
    """One signature of a ``.tflite`` with several; tensors of the others are not allocated.

    Raises:
        InputError: there is none of this name.
    """

    def __init__(self, path: str, threads: int, delegates: Sequence[str], signature: str) -> None:
        self._open(path, threads, delegates)
        names = list(self._interpreter.get_signature_list())
        if signature not in names:
            raise InputError(
                f"{path}: got signature '{signature}', wanted one of: {', '.join(names)}"
            )
        self.number = names.index(signature)
        self._runner = self._interpreter.get_signature_runner(signature)
        self._given, self._taken = (
            self._runner.get_input_details(),
            self._runner.get_output_details(),
        )
        self._inputs, self._outputs = (
            [slots[name] for name in _in_order(slots)] for slots in (self._given, self._taken)
        )

    def bind(self, inputs: Sequence[np.ndarray]) -> Run:
        """See ``Method.bind``."""
        values, runner = self.narrowed(inputs), self._runner
        for slot, value in zip(self._inputs, values, strict=True):
            # The runner would take any shape, and run what was never meant for it.
            if value.shape != (wanted := tuple(slot["shape"].tolist())):
                raise ValueError(f"got an input {value.shape}, wanted {wanted}")
        feeds = dict(zip(_in_order(self._given), values, strict=True))
        fetched = _in_order(self._taken)

        def run() -> list[np.ndarray]:
            found = runner(**feeds)
            return [found[name] for name in fetched]

        return run


def _in_order(names: Iterable[str]) -> list[str]:
    """``args_0``, ``args_1``, ... ``args_10``; ``output_0``, ..."""
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))
