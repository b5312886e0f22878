"""Lowering: programs to files that a device runs, with the reasons for what stays behind."""

from edgeprune.lower.artifact import Artifact, TensorSpec, lower
from edgeprune.lower.delegation import DelegationRow, write_delegation
from edgeprune.lower.executorch import lower_executorch
from edgeprune.lower.lowering import (
    RUNTIMES,
    Lowered,
    Lowering,
    Precision,
    lower_graph,
    register_runtime,
)

__all__ = [
    "RUNTIMES",
    "Artifact",
    "DelegationRow",
    "Lowered",
    "Lowering",
    "Precision",
    "TensorSpec",
    "lower",
    "lower_executorch",
    "lower_graph",
    "register_runtime",
    "write_delegation",
]
