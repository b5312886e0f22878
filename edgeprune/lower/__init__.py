"""Lowering: programs to files that a device runs, with the reasons for what stays behind."""

from edgeprune.lower.artifact import RUNTIMES, Artifact, TensorSpec, lower, register_runtime
from edgeprune.lower.delegation import DelegationRow, write_delegation
from edgeprune.lower.executorch import Lowered, lower_graph

__all__ = [
    "RUNTIMES",
    "Artifact",
    "DelegationRow",
    "Lowered",
    "TensorSpec",
    "lower",
    "lower_graph",
    "register_runtime",
    "write_delegation",
]
