"""Lowering: programs to files that a device runs, with the reasons for what stays behind."""

from edgeprune.lower.artifact import Artifact, Signature, TensorSpec, lower
from edgeprune.lower.delegation import DelegationRow, write_delegation
from edgeprune.lower.ethos_u import lower_ethos_u
from edgeprune.lower.executorch import lower_executorch
from edgeprune.lower.gpu import lower_for
from edgeprune.lower.litert import lower_litert
from edgeprune.lower.lowering import (
    ACCELERATORS,
    RUNTIMES,
    Estimate,
    Lowered,
    Lowering,
    Precision,
    lower_graph,
    register_accelerator,
    register_runtime,
)
from edgeprune.lower.signatures import lower_signatures

__all__ = [
    "ACCELERATORS",
    "RUNTIMES",
    "Artifact",
    "DelegationRow",
    "Estimate",
    "Lowered",
    "Lowering",
    "Precision",
    "Signature",
    "TensorSpec",
    "lower",
    "lower_ethos_u",
    "lower_for",
    "lower_executorch",
    "lower_graph",
    "lower_litert",
    "lower_signatures",
    "register_accelerator",
    "register_runtime",
    "write_delegation",
]
