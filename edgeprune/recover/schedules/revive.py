"""revive: what was cut too early comes back (GDP, Lin et al. 2018).

"Accelerating convolutional networks via global and dynamic filter pruning". The saliency of every
unit, masked or not, is taken anew after every turn of training, in the network as masked: the
squared gradient of its gate. A unit keeps the weights that it was masked with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeprune.errors import InputError
from edgeprune.importance import Evidence
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.recover.refit import put_back
from edgeprune.recover.schedules.course import SCHEDULES, Course
from edgeprune.recover.statistics import reestimate
from edgeprune.sites import find_sites
from edgeprune.surgery import apply


@SCHEDULES.register("revive")
def revive(course: Course) -> None:
    """The width falls over the first half of the rounds; in the second, units change places.

    Raises:
        InputError: the plan cuts a site where masked and removed are not the same.
    """
    for name in course.kept:
        if not course.sites.get(name).exact:
            raise InputError(
                f"schedule revive: '{name}' is not cut exactly, so its units cannot come back. "
                "Use the schedule iterative."
            )
    full = course.sites.program
    falling = list(course.falling(-(-course.rounds // 2)))
    settling = falling[-1:] * (course.rounds - len(falling))
    for counts in [*falling, *settling]:
        course.note(_most_salient(course, full, counts))
        sites = find_sites(full)
        plan = Plan(full.fingerprint, course.plan.kept)
        course.program = reestimate(apply(full, plan, sites), course.batches)
        course.train()
        full = put_back(sites, plan, course.program)


def _most_salient(
    course: Course, full: Program, counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    evidence = Evidence(find_sites(full), course.batches)
    for name, units in course.plan.kept.items():
        evidence.gated.set(name, units)
    chosen = {}
    for name, count in counts.items():
        order = torch.argsort(evidence.gate_gradients[name], descending=True, stable=True)
        chosen[name] = tuple(sorted(order[:count].tolist()))
    return chosen
