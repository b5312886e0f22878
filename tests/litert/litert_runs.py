"""A .tflite file, run with and without the delegate."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType, load_delegate


class Run:
    """An interpreter; called with inputs in the file's order, it gives the output."""

    def __init__(
        self, file: Path, library: Path | None = None, threads: int = 1, xnnpack: bool = True
    ) -> None:
        self.delegate = load_delegate(str(library)) if library else None
        self.interpreter = Interpreter(
            str(file),
            num_threads=threads,
            experimental_delegates=[self.delegate] if self.delegate else None,
            experimental_op_resolver_type=OpResolverType.AUTO
            if xnnpack
            else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )

    @property
    def inputs(self) -> list[dict[str, Any]]:
        return sorted(self.interpreter.get_input_details(), key=lambda slot: str(slot["name"]))

    def resize(self, *shapes: tuple[int, ...]) -> None:
        for slot, shape in zip(self.inputs, shapes, strict=True):
            self.interpreter.resize_tensor_input(slot["index"], shape)

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        self.interpreter.allocate_tensors()
        for slot, value in zip(self.inputs, inputs, strict=True):
            self.interpreter.set_tensor(slot["index"], value.astype(slot["dtype"]))
        self.interpreter.invoke()
        return np.asarray(
            self.interpreter.get_tensor(self.interpreter.get_output_details()[0]["index"])
        )

    @property
    def claimed(self) -> int:
        """Nodes that our delegate runs."""
        assert self.delegate
        claimed = self.delegate._library.ep_litert_claimed
        claimed.argtypes = [ctypes.c_void_p]
        return int(claimed(self.delegate._get_native_delegate_pointer()))

    @property
    def delegate_nodes(self) -> int:
        """Nodes that any delegate runs, after ``allocate_tensors``."""
        return sum(op["op_name"] == "DELEGATE" for op in self.interpreter._get_ops_details())
