"""iterative: a little is cut and trained, again and again (Molchanov et al. 2017).

"Pruning convolutional neural networks for resource efficient inference" (arXiv 1611.06440).
"""

from __future__ import annotations

from edgeprune.recover.schedules.course import SCHEDULES, Course


@SCHEDULES.register("iterative")
def iterative(course: Course) -> None:
    """As many cuts as rounds; units are ranked anew before each, training follows each."""
    for counts in course.falling():
        course.cut(counts)
        course.train()
