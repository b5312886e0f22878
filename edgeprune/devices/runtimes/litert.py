"""LiteRT in the worker."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence

import numpy as np

from edgeprune.devices.runtimes.runtime import Event, Run, register
from edgeprune.errors import InputError

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

    def load(self, path: str, signature: str = "") -> LitertMethod:
        """See ``Runtime.load``.

        Raises:
            InputError: the file has no such signature.
        """
        return (
            SignatureMethod(path, self._threads, signature)
            if signature
            else LitertMethod(path, self._threads)
        )

    def trace(
        self, path: str, inputs: Sequence[np.ndarray], runs: int, signature: str = ""
    ) -> list[Event]:
        """See ``Runtime.trace``.

        The profiler cannot take our delegate along: it sees composites as the operators inside
        them. Those and their like are one event here, what a run with our delegate takes besides
        all others.
        """
        from edgeprune.devices.runtimes.litert_trace import CompiledModel

        method = self.load(path, signature)
        model = CompiledModel(path, self._threads, method.number)
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

    number = 0
    """Of its signature in the file."""

    def __init__(self, path: str, threads: int) -> None:
        self._open(path, threads)
        self._interpreter.allocate_tensors()
        # In the program's order, as the converter writes them; a signature sorts them by name.
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()

    def _open(self, path: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter, load_delegate

        from edgeprune.kernels.load import libraries_for_litert

        ours = [load_delegate(str(library)) for library in libraries_for_litert(path)]
        self.composites = bool(ours)
        self._interpreter = Interpreter(path, num_threads=threads, experimental_delegates=ours)

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


class SignatureMethod(LitertMethod):
    """One signature of a ``.tflite`` with several; tensors of the others are not allocated.

    Raises:
        InputError: there is none of this name.
    """

    def __init__(self, path: str, threads: int, signature: str) -> None:
        self._open(path, threads)
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
