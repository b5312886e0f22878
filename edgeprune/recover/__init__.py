"""Recovery: what a cut program gets back without labels."""

from edgeprune.recover.distil import Distilled, distil
from edgeprune.recover.refit import refit
from edgeprune.recover.statistics import reestimate

__all__ = ["Distilled", "distil", "reestimate", "refit"]
