"""Native kernels: compiled for a target, and called from Python."""

from edgeprune.kernels.attention import SlimAttention, kernel_named
from edgeprune.kernels.build import build_kernels
from edgeprune.kernels.targets import TARGETS, host_target

__all__ = ["TARGETS", "SlimAttention", "build_kernels", "host_target", "kernel_named"]
