"""Surgery: a plan applied to a program gives a smaller program."""

from edgeprune.surgery.apply import apply
from edgeprune.surgery.gates import Gated, gate, masked
from edgeprune.surgery.transfer import transfer

__all__ = ["Gated", "apply", "gate", "masked", "transfer"]
