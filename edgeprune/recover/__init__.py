"""Recovery: what a cut program gets back without labels."""

from edgeprune.recover.distil import Distilled, distil
from edgeprune.recover.mixing import grid_mixed
from edgeprune.recover.refit import refit
from edgeprune.recover.schedules import SCHEDULES, Scheduled, distilling, run_schedule
from edgeprune.recover.statistics import reestimate

__all__ = [
    "SCHEDULES",
    "Distilled",
    "Scheduled",
    "distil",
    "distilling",
    "grid_mixed",
    "reestimate",
    "refit",
    "run_schedule",
]
