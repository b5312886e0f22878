"""Our delegate in ExecuTorch: which nodes it claims, and their bytes."""

from __future__ import annotations

import operator
from typing import Any

from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from executorch.exir.backend.utils import tag_constant_data
from torch._export.utils import (
    get_buffer,
    get_lifted_tensor_constant,
    get_param,
    is_buffer,
    is_lifted_tensor_constant,
    is_param,
)
from torch.export import ExportedProgram

from edgeprune.kernels.load import BACKEND
from edgeprune.lower.partition import regions
from edgeprune.lower.region import write_region
from edgeprune.lower.slim import is_ours


class _Delegate(BackendDetails):
    """Found by its name, which a runtime without it says is not registered."""

    @staticmethod
    def preprocess(program: ExportedProgram, specs: Any) -> PreprocessResult:
        """The bytes that the delegate reads."""
        held = {
            node: value
            for node in program.graph.nodes
            if node.op == "placeholder" and (value := _constant(program, node)) is not None
        }
        return PreprocessResult(processed_bytes=write_region(program.graph, held))


_Delegate.__name__ = BACKEND


class OurPartitioner(Partitioner):
    """Claims all calls of our operators, in the fewest regions there can be.

    Args:
        rest: the partitioner that comes after. ExecuTorch decomposes operators before each: what
            that one wants whole must be kept whole by this one too.
    """

    def __init__(self, rest: Partitioner) -> None:
        super().__init__()
        self.rest = rest

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[Any], Any]:
        """See ``Partitioner``."""
        kept: tuple[list[Any], Any] = self.rest.ops_to_not_decompose(ep)
        return kept

    def partition(self, program: ExportedProgram) -> PartitionResult:
        """Tag the nodes of every region."""
        ours = [node for node in program.graph.nodes if is_ours(node)]
        groups = [
            [node, *(user for user in node.users if user.target is operator.getitem)]
            for node in ours
        ]
        spec, tags = DelegationSpec(BACKEND, []), {}
        for number, nodes in enumerate(regions(program.graph, groups)):
            tag = f"edgeprune_{number}"
            tags[tag] = spec
            for node in nodes:
                node.meta["delegation_tag"] = tag
        tag_constant_data(program)
        return PartitionResult(tagged_exported_program=program, partition_tags=tags)


def _constant(program: ExportedProgram, node: Any) -> Any:
    for is_one, get in (
        (is_param, get_param),
        (is_buffer, get_buffer),
        (is_lifted_tensor_constant, get_lifted_tensor_constant),
    ):
        if is_one(program, node):
            return get(program, node)
    return None
