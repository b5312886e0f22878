"""tick_tock: several small cuts without training, then training, in turns (You et al. 2019).

"Gate Decorator" (arXiv 1909.08174). There a tick trains the gates and the classifier alone before
it cuts; here the closed-form refit of every cut stands for that. A tock trains everything.
"""

from __future__ import annotations

from edgeprune.recover.schedules.course import SCHEDULES, Course

TICKS = 4
"""Cuts between two trainings."""


@SCHEDULES.register("tick_tock")
def tick_tock(course: Course) -> None:
    """Each round ticks ``TICKS`` times, ranking units anew each time, and tocks once."""
    for tick, counts in enumerate(course.falling(course.rounds * TICKS), start=1):
        course.cut(counts)
        if tick % TICKS == 0:
            course.train()
