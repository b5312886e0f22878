"""The captured model: one canonical ATen graph with its weights."""

from edgeprune.program.capture import capture
from edgeprune.program.program import Program

__all__ = ["Program", "capture"]
