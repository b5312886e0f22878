"""Files of one composite or custom op, written without a converter.

A composite's decomposition doubles its first input, which attention and layer norm do not: the
output tells who ran it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

TYPES = {"float32": 0, "float16": 1, "int32": 2, "int8": 9}
Shape = Sequence[int]


@dataclass
class OneOp:
    """``name(inputs) -> output``; inputs with a value are constants of the file."""

    name: str
    attributes: dict[str, float] | bytes
    inputs: Sequence[Shape | np.ndarray]
    output: Shape
    custom: bool = False
    dtype: str = "float32"
    open_sizes: bool = False  # the second dimension of all three-dimensional tensors
    reshaped: bool = False  # the first input has a shape that is known only when it runs

    def write(self, path: Path) -> Path:
        """The .tflite."""
        model = schema.ModelT()
        model.version, model.buffers = 3, [schema.BufferT()]
        model.operatorCodes = [
            _code(schema.BuiltinOperator.CUSTOM, self.name)
            if self.custom
            else _code(schema.BuiltinOperator.STABLEHLO_COMPOSITE),
            _code(schema.BuiltinOperator.ADD),
            _code(schema.BuiltinOperator.RESHAPE),
        ]
        main = self._graph(model, constants=True)
        first = main.operators = [self._op()]
        if self.reshaped:
            self._reshape_first(main)
        assert first
        model.subgraphs = [main]
        if not self.custom:
            inner = self._graph(model, constants=False)
            inner.operators = [_op(1, [0, 0], [len(self.inputs)])]
            model.subgraphs.append(inner)
        builder = flatbuffers.Builder(4096)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path

    def _op(self) -> Any:
        given = self.attributes
        attributes = given if isinstance(given, bytes) else bytes(flexbuffers.Dumps(given))
        data = np.frombuffer(attributes, np.uint8)
        count = len(self.inputs)
        op = _op(0, list(range(count)), [count])
        if self.custom:
            op.customOptions = data
            return op
        options = schema.StableHLOCompositeOptionsT()
        options.name, options.decompositionSubgraphIndex = self.name, 1
        options.compositeAttributes = data
        op.builtinOptions2Type = schema.BuiltinOptions2.StableHLOCompositeOptions
        op.builtinOptions2 = options
        return op

    def _graph(self, model: Any, constants: bool) -> Any:
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.inputs = "main" if constants else "inner", [], []
        for index, given in enumerate([*self.inputs, self.output]):
            value = given if isinstance(given, np.ndarray) else None
            shape = list(given.shape if value is not None else given)
            tensor = self._tensor(f"t{index}", shape)
            if value is not None:
                tensor.type = TYPES[value.dtype.name]
            if value is not None and constants:
                tensor.buffer = _buffer(model, value)
            elif index < len(self.inputs):
                graph.inputs.append(index)
            graph.tensors.append(tensor)
        graph.outputs = [len(self.inputs)]
        return graph

    def _tensor(self, name: str, shape: list[int]) -> Any:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, TYPES[self.dtype], 0
        if self.open_sizes and len(shape) == 3:
            tensor.shapeSignature = [shape[0], -1, shape[2]]
        return tensor

    def _reshape_first(self, graph: Any) -> None:
        """Two more inputs, a flat one and its shape, make the first."""
        start = len(graph.tensors)
        flat = self._tensor("flat", [int(np.prod(graph.tensors[0].shape))])
        shape = self._tensor("shape", [len(graph.tensors[0].shape)])
        shape.type = TYPES["int32"]
        graph.tensors += [flat, shape]
        graph.operators.insert(0, _op(2, [start, start + 1], [0]))
        graph.inputs = [*graph.inputs[1:], start, start + 1]


def _code(builtin: int, name: str | None = None) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
    code.customCode = name
    return code


def _op(code: int, inputs: list[int], outputs: list[int]) -> Any:
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = code, inputs, outputs
    if code == 1:
        op.builtinOptionsType = schema.BuiltinOptions.AddOptions
        op.builtinOptions = schema.AddOptionsT()
    return op


def _buffer(model: Any, value: np.ndarray) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1
