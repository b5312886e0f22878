"""Programs to files for Arm's Ethos-U NPUs: int8 ``.tflite``, compiled by Arm's vela."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeAlias

import torch

from edgeprune.lower.delegation import FALLBACK, DelegationRow
from edgeprune.lower.litert import DEFAULT
from edgeprune.lower.lowering import (
    CPU,
    Estimate,
    Lowered,
    Lowering,
    Tensors,
    register_accelerator,
)
from edgeprune.lower.quiet import muted
from edgeprune.lower.vela import ENVIRONMENT, VERSION, Compiled, System, compile_for

Shapes: TypeAlias = Sequence[tuple[int, ...]]

ETHOS_U = "ethos-u"
# Scales are minima and maxima, which hardly move after as many examples.
CALIBRATION_EXAMPLES = 64
# What an operator costs on the CPU is an assumption, nothing measured: a Cortex-M55 at the NPU's
# clock, a multiply-add a cycle, and reference kernels of TFLite Micro, which touch every element
# read or written in so many cycles; and so many for leaving the NPU and going back to it.
CYCLES_PER_ELEMENT = 16
CYCLES_PER_ENTRY = 2000

# Kinds of operators that vela places on Ethos-U55 and U65, as `vela --supported-ops-report` has it.
RUNS = frozenset(
    {
        *("abs", "add", "arg_max", "average_pool_2d", "batch_matmul", "concatenation", "conv_2d"),
        *("depthwise_conv_2d", "elu", "exp", "expand_dims", "fully_connected", "gelu"),
        *("hard_swish", "leaky_relu", "log", "logistic", "maximum", "max_pool_2d", "mean"),
        *("minimum", "mirror_pad", "mul", "neg", "pack", "pad", "padv2", "prelu", "quantize"),
        *("reduce_max", "reduce_min", "relu", "relu6", "relu_0_to_1", "relu_n1_to_1", "reshape"),
        *("resize_bilinear", "resize_nearest_neighbor", "reverse_v2", "rsqrt", "slice"),
        *("softmax", "split", "split_v", "squared_difference", "squeeze", "strided_slice", "sub"),
        *("sum", "tanh", "tile", "transpose", "transpose_conv"),
        *("unidirectional_sequence_lstm", "unpack"),
    }
)
# Token numbers and masks are whole numbers, which are no work for an NPU; and files take and give
# floats, which the CPU turns into int8 and back.
NPU_TYPES = ("float32", "int8", "uint8", "int16")
EDGES = ("quantize", "dequantize")


@dataclass(frozen=True)
class Operator:
    """One operator of a ``.tflite``.

    Attributes:
        name: the builtin's in lower case, or the custom operator's.
        reads, writes: names of tensors.
        dtype: of what it works on: its first input.
        elements: of all that it reads and writes, but constants.
        multiplies: multiply-adds.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    dtype: str
    elements: int
    multiplies: int


def lower_ethos_u(
    module: torch.nn.Module,
    inputs: Tensors,
    lowering: Lowering,
    calibration: Sequence[Tensors],
    *,
    system: System,
) -> Lowered:
    """Lower to a ``.tflite`` for TFLite Micro; see ``edgeprune.lower.lower_graph``."""
    with muted():
        # Imported here: it takes seconds, and most commands never lower anything.
        from edgeprune.lower.tflite import converted, narrowed, quantise_all

        plain = replace(lowering, precision="fp32", accelerator=CPU)
        data, outputs = converted({DEFAULT: (module, inputs)}, plain)
        examples = islice(_singly(calibration), CALIBRATION_EXAMPLES)
        portable = quantise_all(data, DEFAULT, examples)
    compiled = compile_for(portable, system)
    rows = tuple(_rows(portable, compiled))
    cpu_ms = sum(float(row.assumed_ms) for row in rows if not row.delegated)
    edges_ms = _edges_ms(portable, compiled.clock_hz)
    return Lowered(
        data=compiled.data,
        inputs=narrowed(inputs),
        outputs=narrowed(outputs[DEFAULT]),
        delegation=rows,
        planned_memory_bytes=compiled.arena_bytes,
        portable=portable,
        estimate=Estimate(
            latency_ms=compiled.npu_ms + cpu_ms,
            accelerator_ms=compiled.npu_ms,
            cpu_ms=cpu_ms,
            edges_ms=edges_ms,
            arena_bytes=compiled.arena_bytes,
            source=str(system),
        ),
    )


def _singly(batches: Sequence[Tensors]) -> Iterator[Tensors]:
    for batch in batches:
        for row in range(len(batch[0])):
            yield tuple(each[row : row + 1] for each in batch)


def _rows(portable: bytes, compiled: Compiled) -> Iterator[DelegationRow]:
    """Every operator of the file as it went into vela, in order of execution."""
    from edgeprune.lower.tflite import regions_of

    before, after = operators(portable), operators(compiled.data)
    calls = [each for each in after if each.name == ETHOS_U]
    left = {name: each for each in after if each.name != ETHOS_U for name in each.writes}
    places = [
        {"index": number, "op_name": name, "inputs": each.reads, "outputs": each.writes}
        for number, (name, each) in enumerate(
            [*((each.name, each) for each in before), *(("DELEGATE", each) for each in calls)]
        )
    ]
    regions, region = regions_of(places), 0
    for number, operator in enumerate(before):
        node, op = f"{operator.name}_{number}", f"tfl.{operator.name}"
        stays = next((name for name in operator.writes if left.pop(name, None)), None)
        if stays is None:
            # A call may leave what it made in the NPU's memory for a later one: nothing is written.
            region = regions.get(number, region)
            yield DelegationRow(node, op, ETHOS_U, str(region), "")
        else:
            reason = compiled.refusals.get(stays, "vela gives no reason")
            ms = assumed_ms(operator, compiled.clock_hz)
            who = FALLBACK if should_run(operator) else CPU
            yield DelegationRow(node, op, who, "", reason, f"{ms:.6g}")
    for name, operator in left.items():
        ms = assumed_ms(operator, compiled.clock_hz)
        reason = "made by vela, which gives no reason"
        yield DelegationRow(name, f"tfl.{operator.name}", FALLBACK, "", reason, f"{ms:.6g}")


def _edges_ms(portable: bytes, clock_hz: float) -> float:
    held = operators(portable)
    made = {name for operator in held for name in operator.writes}
    read = {name for operator in held for name in operator.reads}
    edges = (
        operator
        for operator in held
        if operator.name in EDGES
        and (not made & set(operator.reads) or not read & set(operator.writes))
    )
    return sum(assumed_ms(operator, clock_hz) for operator in edges)


def should_run(operator: Operator) -> bool:
    """Whether an NPU runs operators of this kind on this type, so that leaving it is a fallback."""
    edge = operator.name in EDGES and operator.dtype == "float32"
    return operator.name in RUNS and operator.dtype in NPU_TYPES and not edge


def assumed_ms(operator: Operator, clock_hz: float) -> float:
    """What an operator costs on the CPU beside the NPU, by assumption."""
    cycles = CYCLES_PER_ENTRY + CYCLES_PER_ELEMENT * operator.elements + operator.multiplies
    return 1e3 * cycles / clock_hz


def operators(data: bytes) -> list[Operator]:
    """The operators of a ``.tflite`` with one subgraph, in order of execution."""
    from ai_edge_litert import schema_py_generated as schema

    builtins = {code: name.lower() for name, code in vars(schema.BuiltinOperator).items()}
    types = {code: name.lower() for name, code in vars(schema.TensorType).items()}
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(number) for number in range(graph.TensorsLength())]
    shapes = [
        tuple(int(size) for size in each.ShapeAsNumpy()) if each.ShapeLength() else ()
        for each in tensors
    ]
    held = [model.Buffers(each.Buffer()).DataLength() > 0 for each in tensors]
    found = []
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex())
        custom = code.CustomCode()
        reads, writes = (
            [int(each) for each in side if each >= 0]
            for side in (operator.InputsAsNumpy(), operator.OutputsAsNumpy())
        )
        name = custom.decode() if custom else builtins[code.BuiltinCode()]
        found.append(
            Operator(
                name=name,
                reads=tuple(tensors[each].Name().decode() for each in reads),
                writes=tuple(tensors[each].Name().decode() for each in writes),
                dtype=types[tensors[reads[0]].Type()] if reads else "none",
                elements=sum(math.prod(shapes[n]) for n in (*reads, *writes) if not held[n]),
                multiplies=_multiplies(
                    name, [shapes[n] for n in reads], [shapes[n] for n in writes]
                ),
            )
        )
    return found


def _multiplies(name: str, reads: Shapes, writes: Shapes) -> int:
    """Of a matrix product or convolution; 0 of the rest."""
    if name in ("fully_connected", "batch_matmul"):
        return math.prod(writes[0]) * reads[0][-1]
    if name == "conv_2d":
        return math.prod(writes[0]) * math.prod(reads[1][1:])
    if name == "depthwise_conv_2d":
        return math.prod(writes[0]) * math.prod(reads[1][1:3])
    return 0


for _name, _title, _system in (
    (
        "ethos-u55-256",
        "Arm Ethos-U55-256",
        System("ethos-u55-256", "Ethos_U55_High_End_Embedded", "Shared_Sram"),
    ),
    (
        "ethos-u65-256",
        "Arm Ethos-U65-256",
        System("ethos-u65-256", "Ethos_U65_Embedded", "Shared_Sram"),
    ),
):
    register_accelerator(
        *(_name, _title, "litert", ("int8",)),
        tools={ENVIRONMENT.package: VERSION},
        calibrated=True,
        estimates=True,
        # Ranks are counted in comparisons, and 15 of their operators stay on the CPU.
        selects=False,
    )(partial(lower_ethos_u, system=_system))
