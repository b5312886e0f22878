"""Native kernels: compiled for a target, and called from Python."""

from edgeprune.kernels.attention import SlimAttention, kernel_named
from edgeprune.kernels.build import build_library
from edgeprune.kernels.libraries import LIBRARIES
from edgeprune.kernels.linear import QuantisedLinear, linear_kernel_named
from edgeprune.kernels.norm import layer_norm, norm_kernel_named
from edgeprune.kernels.targets import TARGETS, host_target

__all__ = [
    "LIBRARIES",
    "TARGETS",
    "QuantisedLinear",
    "SlimAttention",
    "build_library",
    "host_target",
    "kernel_named",
    "layer_norm",
    "linear_kernel_named",
    "norm_kernel_named",
]
