"""Lowering: programs to files that a device runs, with the reasons for what stays behind."""

from edgeprune.lower.artifact import Artifact, Signature, TensorSpec, lower
from edgeprune.lower.delegation import DelegationRow, write_delegation
from edgeprune.lower.executorch import lower_executorch
from edgeprune.lower.litert import lower_litert
from edgeprune.lower.lowering import (
    RUNTIMES,
    Lowered,
    Lowering,
    Precision,
    lower_graph,
    register_runtime,
)
from edgeprune.lower.signatures import lower_signatures

__all__ = [
    "RUNTIMES",
    "Artifact",
    "DelegationRow",
    "Lowered",
    "Lowering",
    "Precision",
    "Signature",
    "TensorSpec",
    "lower",
    "lower_executorch",
    "lower_graph",
    "lower_litert",
    "lower_signatures",
    "register_runtime",
    "write_delegation",
]
