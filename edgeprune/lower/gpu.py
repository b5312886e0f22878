"""Programs to ExecuTorch files for Vulkan GPUs and Apple's CoreML: lowered, and never run here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.fx import GraphModule, Node

from edgeprune.lower.delegation import FALLBACK, DelegationRow
from edgeprune.lower.graph import aten, is_call
from edgeprune.lower.lowering import CPU, Lowered, Lowering, Tensors, register_accelerator
from edgeprune.lower.quiet import muted

# The work of a network: where a GPU leaves one of these to the CPU, the file is not what was
# asked for.
WORK = ("linear", "addmm", "mm", "bmm", "matmul", "convolution", "softmax", "layer_norm", "gelu")

MakePartitioner: TypeAlias = Callable[[Lowering], Any]


def lower_for(
    name: str, make: MakePartitioner
) -> Callable[[torch.nn.Module, Tensors, Lowering, Sequence[Tensors]], Lowered]:
    """What lowers to a ``.pte`` for one accelerator; see ``edgeprune.lower.lower_graph``.

    Args:
        name: as ``delegation.csv`` has it.
        make: gives ExecuTorch's partitioner.
    """

    def lower(
        module: torch.nn.Module, inputs: Tensors, lowering: Lowering, _: Sequence[Tensors]
    ) -> Lowered:
        with muted():
            # Imported here: it takes seconds, and most commands never lower anything.
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

            from edgeprune.lower.prepare import prepare

            graph = prepare(module, inputs, _with_float_bounds)
            outputs = graph(*inputs)
            edge = to_edge_transform_and_lower(
                torch.export.export(graph, inputs, strict=False),
                partitioner=[make(lowering)],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            rows = tuple(_rows(edge.exported_program().graph_module, name))
            emitted = edge.to_executorch()
        arena = sum(emitted.executorch_program.execution_plan[0].non_const_buffer_sizes)
        plain = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        return Lowered(emitted.buffer, inputs, plain, rows, int(arena))

    return lower


def _with_float_bounds(graph: GraphModule) -> None:
    """ReLU6 with bounds that are floats: coremltools refuses to clip floats between integers."""
    for node in graph.graph.nodes:
        if is_call(node, aten.relu6.default):
            node.target, node.args = aten.hardtanh.default, (node.args[0], 0.0, 6.0)
        elif is_call(node, aten.hardtanh.default):
            node.args = (node.args[0], *map(float, node.args[1:]))


def _rows(graph: GraphModule, name: str) -> Iterator[DelegationRow]:
    """Every operator of the final program, those inside delegates where they are called."""
    from edgeprune.lower.xnnpack import is_plumbing, name_of

    for node in graph.graph.nodes:
        if node.op != "call_function" or is_plumbing(node):
            continue
        if node.target.__name__ != "executorch_call_delegate":
            who = FALLBACK if _is_work(node) else CPU
            reason = f"{name}'s partitioner in ExecuTorch leaves it, and gives no reason"
            yield DelegationRow(node.name, name_of(node), who, "", reason)
            continue
        region = node.args[0].name.split("_")[-1]
        for part in getattr(graph, node.args[0].target).original_module.graph.nodes:
            if part.op == "call_function" and not is_plumbing(part):
                yield DelegationRow(part.name, name_of(part), name, region, "")


def _is_work(node: Node) -> bool:
    from edgeprune.lower.xnnpack import name_of

    words = name_of(node).split(".")[1]
    return any(words.strip("_").removeprefix("native_") == each for each in WORK)


def _vulkan(lowering: Lowering) -> Any:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return VulkanPartitioner({"force_fp16": lowering.precision == "fp16"})


def _coreml(lowering: Lowering) -> Any:
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    kinds = coremltools.precision
    precision = kinds.FLOAT16 if lowering.precision == "fp16" else kinds.FLOAT32
    specs = CoreMLBackend.generate_compile_specs(compute_precision=precision)
    return CoreMLPartitioner(compile_specs=specs)


_register = partial(register_accelerator, runtime="executorch", precisions=("fp16", "fp32"))
_register("vulkan", "Vulkan")(lower_for("vulkan", _vulkan))
_register("coreml", "CoreML", packages=("coremltools",))(lower_for("coreml", _coreml))
