"""The road from a module to ``.pte`` bytes: export, rewrite, quantise, delegate, emit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.traceback
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch.fx import GraphModule, Node

from edgeprune.errors import EdgepruneError
from edgeprune.kernels.load import BACKEND
from edgeprune.lower.claim import OurPartitioner
from edgeprune.lower.delegation import DelegationRow
from edgeprune.lower.half import to_half
from edgeprune.lower.lowering import Lowered, Lowering
from edgeprune.lower.partition import RegionPartitioner
from edgeprune.lower.prepare import Tensors, prepare
from edgeprune.lower.quantise import quantise_dynamic
from edgeprune.lower.region import arena_bytes
from edgeprune.lower.slim import fuser, is_ours


def to_executorch(module: torch.nn.Module, inputs: Tensors, lowering: Lowering) -> Lowered:
    """See ``edgeprune.lower.lower_graph``."""
    graph = prepare(module, inputs, *fuser(lowering))
    outputs = graph(*inputs)
    if lowering.precision == "int8":
        graph = quantise_dynamic(graph, inputs)
    elif lowering.precision == "fp16":
        to_half(graph)
    wanted = sum(map(is_ours, graph.graph.nodes))
    partitioner = RegionPartitioner()
    with _short_provenance():
        exported = torch.export.export(graph, inputs, strict=False)
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[OurPartitioner(partitioner), partitioner] if wanted else [partitioner],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        rows = tuple(_rows(edge.exported_program().graph_module, partitioner))
        ours = sum(map(arena_bytes, _regions_of_ours(edge.exported_program().graph_module)))
        emitted = edge.to_executorch()
    _check_kernels(emitted.executorch_program.execution_plan[0].operators)
    claimed = sum(row.delegate == "edgeprune" for row in rows)
    if claimed != wanted:
        raise EdgepruneError(f"our delegate claimed {claimed} operators, wanted {wanted}")
    arena = sum(emitted.executorch_program.execution_plan[0].non_const_buffer_sizes)
    plain = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    return Lowered(emitted.buffer, inputs, plain, rows, int(arena) + ours)


def _check_kernels(operators: Iterable[Any]) -> None:
    """Refuse a file that no runtime would load.

    Raises:
        EdgepruneError: the runtime has no kernel for an operator that XNNPACK does not take.
    """
    # Imported here: the compiler does not need the runtime, which must come before our library.
    from executorch.runtime import Runtime

    known = Runtime.get().operator_registry.operator_names
    needed = {f"{each.name}.{each.overload}".rstrip(".") for each in operators}
    missing = sorted(name for name in needed - known if name.startswith("aten::"))
    if missing:
        names = ", ".join(name.removesuffix(".out").replace("::", ".") for name in missing)
        raise EdgepruneError(
            f"executorch has no kernel for {names}, nor has XNNPACK: the file would not load. "
            "Write the model without it, or lower with --runtime litert."
        )


def _rows(graph: GraphModule, partitioner: RegionPartitioner) -> Iterator[DelegationRow]:
    """Every operator of the final program, those inside delegates where they are called."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or is_plumbing(node):
            continue
        if node.target.__name__ == "executorch_call_delegate":
            region = node.args[0].name
            lowered = getattr(graph, node.args[0].target)
            inner = lowered.original_module.graph
            name = "edgeprune" if lowered.backend_id == BACKEND else "xnnpack"
            for part in inner.nodes:
                if part.op == "call_function" and not is_plumbing(part):
                    yield DelegationRow(part.name, name_of(part), name, region.split("_")[-1], "")
        else:
            yield DelegationRow(node.name, name_of(node), "cpu", "", _why_not(node, partitioner))


def _regions_of_ours(graph: GraphModule) -> Iterator[bytes]:
    for _, module in graph.named_children():
        if getattr(module, "backend_id", None) == BACKEND:
            yield module.processed_bytes


def is_plumbing(node: Node) -> bool:
    """Whether it only takes one of several results."""
    return getattr(node.target, "__name__", "") == "getitem"


def name_of(node: Node) -> str:
    """The operator, as in ``aten.linear.default``."""
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None:
        return str(node.target)
    name = schema.name.replace("::", ".")
    return f"{name}.{schema.overload_name or 'default'}"


def _why_not(node: Node, partitioner: RegionPartitioner) -> str:
    reason = partitioner.reasons.get(node.name)
    if reason is not None:
        return reason
    if name_of(node).split(".", 1)[-1] in partitioner.target_partitioner_configs:
        return "refused by XNNPACK's rule, which gives no reason"
    return f"XNNPACK has no rule for {name_of(node)}"


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
