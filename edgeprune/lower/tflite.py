"""The road from a module to ``.tflite`` bytes: export, rewrite, convert, quantise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, TypeAlias

import litert_torch
import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import (
    ComputePrecision,
    OpQuantizationConfig,
    TensorDataType,
    TensorQuantizationConfig,
    TFLOperationName,
)
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update
from torch.fx import GraphModule

from edgeprune.lower.composites import as_composites
from edgeprune.lower.delegation import DelegationRow
from edgeprune.lower.lowering import Lowered, Lowering
from edgeprune.lower.prepare import Tensors, prepare
from edgeprune.lower.slim import fuser, is_ours, linears_win

Graphs: TypeAlias = Mapping[str, tuple[torch.nn.Module, Tensors]]
"""Signature -> what it runs, and examples of its inputs."""

# Of a model's table in the schema.
SUBGRAPHS_SLOT = 8
NARROWER = {torch.int64: torch.int32, torch.float64: torch.float32}


def to_tflite(graphs: Graphs, lowering: Lowering) -> dict[str, Lowered]:
    """One file with a signature for each graph; constants that are equal are stored once.

    Returns:
        What each signature is, all with the bytes of the whole file.
    """
    data, outputs = converted(graphs, lowering)
    if lowering.precision == "int8":
        data = quantise_linears(data)
    elif lowering.precision == "fp16":
        data = halve_weights(data)
    model, found = schema.Model.GetRootAs(data, 0), {}
    for number in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(number)
        name = signature.SignatureKey().decode()
        inner = _led_by(data, signature.SubgraphIndex())
        # With XNNPACK, as the runtime applies it by default; it alone tells what that takes.
        interpreter = Interpreter(model_content=inner, num_threads=1)
        interpreter.allocate_tensors()
        found[name] = Lowered(
            data=data,
            inputs=narrowed(graphs[name][1]),
            outputs=narrowed(outputs[name]),
            delegation=tuple(_rows(interpreter, _ours(inner, lowering))),
            planned_memory_bytes=_arena_bytes(interpreter, inner),
        )
    return {name: found[name] for name in graphs}


def converted(graphs: Graphs, lowering: Lowering) -> tuple[bytes, dict[str, Tensors]]:
    """The file in fp32, and the outputs of each graph for its example inputs."""
    converter, outputs = litert_torch.Converter(), {}
    for name, (module, inputs) in graphs.items():
        graph, outputs[name] = _prepared(module, inputs, lowering)
        converter.add_signature(name, graph, inputs)
    return bytes(converter.convert().model_content()), outputs


def _prepared(
    module: torch.nn.Module, inputs: Tensors, lowering: Lowering
) -> tuple[torch.nn.Module, Tensors]:
    """A graph as the converter takes it, with our operators as composites; and its outputs."""
    # Linear layers are quantised later, as LiteRT knows them.
    graph = prepare(module, inputs, *fuser(replace(lowering, precision="fp32")))
    outputs = graph(*inputs)
    _forget_origins(graph)
    if any(map(is_ours, graph.graph.nodes)):
        graph = as_composites(torch.export.export(graph, inputs, strict=False)).module()
        _forget_origins(graph)
    return graph, (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def _led_by(data: bytes, number: int) -> bytes:
    """The file with another subgraph in the first place, which is all that LiteRT tells about."""
    if number == 0:
        return data
    table = schema.Model.GetRootAs(data, 0)._tab
    start = table.Vector(table.Offset(SUBGRAPHS_SLOT))
    swapped = bytearray(data)
    for here, there in ((0, number), (number, 0)):
        one, other = start + 4 * here, start + 4 * there
        # References count from where they stand.
        away = int.from_bytes(data[other : other + 4], "little") + other - one
        swapped[one : one + 4] = away.to_bytes(4, "little")
    return bytes(swapped)


def quantise_linears(data: bytes) -> bytes:
    """The file with int8 linears: one scale per output row, activations quantised at run time."""
    ours = quantizer.Quantizer(data)
    ours.add_dynamic_config(".*", TFLOperationName.FULLY_CONNECTED, num_bits=8)
    quantised = ours.quantize().quantized_model
    assert quantised is not None
    return bytes(quantised)


def quantise_all(data: bytes, signature: str, examples: Iterable[Tensors]) -> bytes:
    """The file in int8, activations too, on scales that examples give; it takes and gives floats.

    Args:
        examples: inputs of the file, batch 1 each.
    """
    recipe = RecipeManager()
    everything = TFLOperationName.ALL_SUPPORTED
    recipe.add_static_config(".*", everything, activation_num_bits=8, weight_num_bits=8)
    for edge in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", edge, algorithm_key=AlgorithmName.NO_QUANTIZE)
    fed = [
        {f"args_{place}": each.numpy() for place, each in enumerate(narrowed(example))}
        for example in examples
    ]
    # The usual calibration follows a moving average of minima and maxima, and clips what lies
    # beyond: digits-vit's lowest cosine is then 0.80 instead of 0.986.
    ranges = Calibrator(data, qsv_update_func=min_max_update)
    ranges.calibrate({signature: fed}, recipe)
    ours = quantizer.Quantizer(data, recipe.get_quantization_recipe())
    quantised = ours.quantize(ranges.get_model_qsvs()).quantized_model
    assert quantised is not None
    return bytes(quantised)


def halve_weights(data: bytes) -> bytes:
    """The file with weights in half floats, which are computed with as float32."""
    ours = quantizer.Quantizer(data)
    config = OpQuantizationConfig(
        weight_tensor_config=TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT),
        compute_precision=ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    everything = TFLOperationName.ALL_SUPPORTED
    ours.update_quantization_recipe(".*", everything, config, AlgorithmName.FLOAT_CASTING)
    halved = ours.quantize().quantized_model
    assert halved is not None
    return bytes(halved)


def _forget_origins(graph: GraphModule) -> None:
    """Leave behind the names of the user's classes; they would be written into the file."""
    for node in graph.graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}


def narrowed(tensors: Tensors) -> Tensors:
    """As the file takes and gives them."""
    return tuple(each.to(NARROWER.get(each.dtype, each.dtype)) for each in tensors)


def _rows(interpreter: Interpreter, ours: dict[int, str]) -> Iterator[DelegationRow]:
    """Every operator of the file, in order of execution.

    Args:
        ours: operator index -> name, of what our delegate runs, each in a call of its own.
    """
    details = interpreter._get_ops_details()
    regions = regions_of(details)
    numbers = count(max(regions.values(), default=-1) + 1)
    types = {each["index"]: each["dtype"] for each in interpreter.get_tensor_details()}
    for op in details:
        if op["op_name"] == "DELEGATE":
            continue
        number, name = op["index"], op["op_name"].lower()
        node = f"{name}_{number}"
        if number in ours:
            yield DelegationRow(node, ours[number], "edgeprune", str(next(numbers)), "")
        elif number in regions:
            yield DelegationRow(node, f"tfl.{name}", "xnnpack", str(regions[number]), "")
        else:
            yield DelegationRow(node, f"tfl.{name}", "cpu", "", _why_not(op, types))


def _ours(data: bytes, lowering: Lowering) -> dict[int, str]:
    """Operator index -> name, of what our delegate runs on the device.

    Those are composites and, where they win and a composite brings the delegate, int8 linears.
    """
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    linears, found = {}, {}
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()
        if code == schema.BuiltinOperator.FULLY_CONNECTED:
            linears[number] = "tfl.fully_connected"
        if operator.BuiltinOptions2Type() == schema.BuiltinOptions2.StableHLOCompositeOptions:
            options, table = schema.StableHLOCompositeOptions(), operator.BuiltinOptions2()
            options.Init(table.Bytes, table.Pos)
            found[number] = options.Name().decode()
    return found | linears if found and linears_win(lowering) else found


def regions_of(operators: list[dict[str, Any]]) -> dict[int, int]:
    """Operator index -> number of the delegate call that replaced it.

    A delegate call reads what its operators read and writes what they write; going back from the
    one to the other meets them all.
    """
    calls = [op for op in operators if op["op_name"] == "DELEGATE"]
    writer = {
        tensor: op for op in operators if op["op_name"] != "DELEGATE" for tensor in op["outputs"]
    }
    found: dict[int, int] = {}
    for number, call in enumerate(calls):
        read, pending = set(call["inputs"]), list(call["outputs"])
        while pending:
            tensor = pending.pop()
            op = writer.get(tensor)
            if op is None or tensor in read or op["index"] in found:
                continue
            found[op["index"]] = number
            pending += list(op["inputs"])
    return found


def _why_not(op: dict[str, Any], types: dict[int, Any]) -> str:
    """XNNPACK's rules give no reasons in LiteRT; the common one can be seen."""
    read = [np.dtype(types[t]).name for t in (*op["inputs"], *op["outputs"]) if t in types]
    whole = [name for name in read if name.startswith(("int32", "int64", "bool"))]
    if whole:
        return f"XNNPACK takes floats and int8; this one works on {whole[0]}"
    return "refused by XNNPACK's rule, which gives no reason"


def _arena_bytes(interpreter: Interpreter, data: bytes) -> int:
    """The memory that LiteRT's plan spans, read off the addresses of the tensors it holds."""
    spans = []
    for index in _activations(data):
        try:
            view = interpreter.tensor(index)()
        except ValueError:  # inside a delegate, which has a workspace of its own
            continue
        start = view.__array_interface__["data"][0]
        spans.append((start, start + view.nbytes))
    return max((end for _, end in spans), default=0) - min((start for start, _ in spans), default=0)


def _activations(data: bytes) -> list[int]:
    """The tensors of the file that hold no constant."""
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    buffers = [
        model.Buffers(graph.Tensors(number).Buffer()) for number in range(graph.TensorsLength())
    ]
    sizes = [each.DataLength() or each.Size() for each in buffers]
    return [number for number, size in enumerate(sizes) if not size]
