"""Surgery: a plan applied to a program gives a smaller program."""

from edgeprune.surgery.apply import apply
from edgeprune.surgery.gates import Gated, gate, masked

__all__ = ["Gated", "apply", "gate", "masked"]
