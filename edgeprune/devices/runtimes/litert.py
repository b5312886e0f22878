"""LiteRT in the worker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.devices.runtimes.runtime import Event, Run, register


@register(".tflite")
class Litert:
    """The runtime; XNNPACK gets what it takes, as LiteRT does by itself."""

    def __init__(self, threads: int) -> None:
        # Loaded before anything is timed or weighed.
        import ai_edge_litert.interpreter
        import ai_edge_litert.schema_py_generated  # noqa: F401

        self._threads = threads

    def load(self, path: str) -> LitertMethod:
        """See ``Runtime.load``."""
        return LitertMethod(path, self._threads)

    def trace(self, path: str, inputs: Sequence[np.ndarray], runs: int) -> list[Event]:
        """See ``Runtime.trace``."""
        from edgeprune.devices.runtimes.litert_trace import CompiledModel

        method = self.load(path)
        return CompiledModel(path, self._threads).trace(
            method.narrowed(inputs), method.empty_outputs(), runs
        )


class LitertMethod:
    """A ``.tflite`` in the interpreter that apps use."""

    def __init__(self, path: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter, load_delegate

        from edgeprune.kernels.load import libraries_for_litert

        ours = [load_delegate(str(library)) for library in libraries_for_litert(path)]
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
