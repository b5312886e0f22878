"""Schedules: how a cut and its training take turns, one a file."""

from edgeprune.recover.schedules import iterative, one_shot, revive, rewind, tick_tock
from edgeprune.recover.schedules.course import DEFAULT, SCHEDULES, Course, Round
from edgeprune.recover.schedules.run import Scheduled, distilling, run_schedule

__all__ = [
    "DEFAULT",
    "SCHEDULES",
    "Course",
    "Round",
    "Scheduled",
    "distilling",
    "iterative",
    "one_shot",
    "revive",
    "rewind",
    "run_schedule",
    "tick_tock",
]
