"""rewind: train, cut, go back to the first weights, again and again (the lottery ticket).

Frankle and Carbin 2019 (arXiv 1803.03635) for weights; Behnke and Heafield 2020, "Losing heads in
the lottery", for attention heads. The first weights are those of the given program.
"""

from __future__ import annotations

from edgeprune.recover.schedules.course import SCHEDULES, Course


@SCHEDULES.register("rewind")
def rewind(course: Course) -> None:
    """Units are chosen in trained weights; what is kept starts from the dense ones each time."""
    for counts in course.falling():
        course.train()
        course.cut(counts)
        course.rewind()
    course.train()
