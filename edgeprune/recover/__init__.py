"""Recovery: what a cut program gets back without labels."""

from edgeprune.recover.distil import Distilled, distil

__all__ = ["Distilled", "distil"]
