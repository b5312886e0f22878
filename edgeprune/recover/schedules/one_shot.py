"""one_shot: all at once, then one turn of training."""

from __future__ import annotations

from edgeprune.recover.schedules.course import SCHEDULES, Course


@SCHEDULES.register("one_shot")
def one_shot(course: Course) -> None:
    """Cut to the very units of the target, refit, train."""
    course.cut_from_dense({name: course.target.kept[name] for name in course.kept})
    course.train()
