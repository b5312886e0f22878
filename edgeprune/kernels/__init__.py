"""Native kernels: compiled for a target, and called from Python."""

from edgeprune.kernels.attention import SlimAttention, kernel_named
from edgeprune.kernels.build import build_library
from edgeprune.kernels.libraries import LIBRARIES
from edgeprune.kernels.targets import TARGETS, host_target

__all__ = ["LIBRARIES", "TARGETS", "SlimAttention", "build_library", "host_target", "kernel_named"]
