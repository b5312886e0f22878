"""The road from a module to ``.pte`` bytes: export, rewrite, quantise, delegate, emit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.traceback
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch.fx import GraphModule, Node

from edgeprune.lower.attention import rewrite_attention
from edgeprune.lower.delegation import DelegationRow
from edgeprune.lower.graph import propagate
from edgeprune.lower.lowering import Lowering
from edgeprune.lower.matmul import rewrite_matmul
from edgeprune.lower.partition import RegionPartitioner
from edgeprune.lower.quantise import quantise_dynamic
from edgeprune.lower.simplify import simplify

Tensors = tuple[torch.Tensor, ...]


def to_executorch(
    module: torch.nn.Module, inputs: Tensors, lowering: Lowering
) -> tuple[bytes, Tensors, tuple[DelegationRow, ...], int]:
    """The file's bytes, example outputs, delegation rows, and the planned arena in bytes."""
    graph = prepare(module, inputs)
    outputs = graph(*inputs)
    if lowering.precision == "int8":
        graph = quantise_dynamic(graph, inputs)
    partitioner = RegionPartitioner()
    with _short_provenance():
        exported = torch.export.export(graph, inputs, strict=False)
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[partitioner],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        rows = tuple(_rows(edge.exported_program().graph_module, partitioner))
        emitted = edge.to_executorch()
    arena = sum(emitted.executorch_program.execution_plan[0].non_const_buffer_sizes)
    plain = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    return emitted.buffer, plain, rows, int(arena)


def prepare(module: torch.nn.Module, inputs: Tensors) -> GraphModule:
    """A new ATen graph of ``module`` for these static shapes, in the form that lowers best."""
    exported = torch.export.export(module, inputs, strict=False)
    if any(_writes_in_place(node) for node in exported.graph.nodes):
        exported = exported.run_decompositions({})
    graph = exported.module()
    assert isinstance(graph, GraphModule)
    propagate(graph, inputs)
    simplify(graph)
    rewrite_attention(graph)
    rewrite_matmul(graph)
    simplify(graph)
    graph.recompile()
    return graph


def _writes_in_place(node: Node) -> bool:
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _rows(graph: GraphModule, partitioner: RegionPartitioner) -> Iterator[DelegationRow]:
    """Every operator of the final program, those inside delegates where they are called."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or _is_plumbing(node):
            continue
        if node.target.__name__ == "executorch_call_delegate":
            region = node.args[0].name
            inner = getattr(graph, node.args[0].target).original_module.graph
            for part in inner.nodes:
                if part.op == "call_function" and not _is_plumbing(part):
                    yield DelegationRow(part.name, _op(part), "xnnpack", region.split("_")[-1], "")
        else:
            yield DelegationRow(node.name, _op(node), "cpu", "", _why_not(node, partitioner))


def _is_plumbing(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _op(node: Node) -> str:
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None:
        return str(node.target)
    name = schema.name.replace("::", ".")
    return f"{name}.{schema.overload_name or 'default'}"


def _why_not(node: Node, partitioner: RegionPartitioner) -> str:
    reason = partitioner.reasons.get(node.name)
    if reason is not None:
        return reason
    if _op(node).split(".", 1)[-1] in partitioner.target_partitioner_configs:
        return "refused by XNNPACK's rule, which gives no reason"
    return f"XNNPACK has no rule for {_op(node)}"


@contextmanager
def _short_provenance() -> Iterator[None]:
    """Let new nodes remember no ancestors: copying the chains takes a fifth of the lowering.

    They only serve debuggers; the file does not contain them.
    """
    full = torch.fx.traceback.NodeSource

    class Nameless(full):  # type: ignore[misc, valid-type]
        def __init__(self, node: Node | None, pass_name: str = "", action: Any = None) -> None:
            super().__init__(None, pass_name, action)

    torch.fx.traceback.NodeSource = Nameless  # type: ignore[misc]
    try:
        yield
    finally:
        torch.fx.traceback.NodeSource = full  # type: ignore[misc]
