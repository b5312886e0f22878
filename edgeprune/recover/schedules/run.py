"""Run a schedule by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from edgeprune.errors import InputError
from edgeprune.importance import DEFAULT as DEFAULT_CRITERION
from edgeprune.plan import Plan, check_plan
from edgeprune.program import Program
from edgeprune.recover.distil import distil
from edgeprune.recover.refit import refit
from edgeprune.recover.schedules.course import DEFAULT, SCHEDULES, Course, Round, Train
from edgeprune.sites import Sites, find_sites
from edgeprune.task import Batch


@dataclass(frozen=True)
class Scheduled:
    """What a schedule gave.

    Attributes:
        program: cut and trained.
        plan: what the dense program was cut to; as many units of every site as were asked for.
        rounds: one entry per cut.
    """

    program: Program
    plan: Plan
    rounds: tuple[Round, ...]


def run_schedule(
    sites: Sites,
    target: Plan,
    batches: Sequence[Batch],
    train: Train,
    *,
    schedule: str = DEFAULT,
    rounds: int = 4,
    criterion: str = DEFAULT_CRITERION,
) -> Scheduled:
    """Bring a program to a plan, cutting and training in turns.

    Sub-layers go first, tokens last: training between cuts sees all of them.

    Args:
        sites: of the dense program.
        target: the plan. ``one_shot`` keeps its very units, the others as many, chosen on the way.
        batches: calibration inputs without labels.
        train: one turn of training, such as :func:`distilling` makes.
        schedule: a name in ``SCHEDULES``.
        rounds: in how many turns the width goes.
        criterion: what ranks units between the turns.

    Raises:
        InputError: no schedule or criterion of that name, or the plan does not fit, or has ranks
            or fall-backs.
    """
    if rounds < 1:
        raise InputError(f"schedule {schedule}: got {rounds} rounds, wanted at least 1")
    if target.rank or target.fallback:
        raise InputError(
            f"schedule {schedule}: got a plan with ranks or fall-backs, which it does not cut. "
            "Leave them out, and apply them to the program that it gives."
        )
    check_plan(target, sites)
    course = Course(sites, target, batches, train, rounds, criterion)
    SCHEDULES.named(schedule)(course)
    program = course.program
    tokens, merge, length = target.tokens, target.merge, target.length
    if tokens or length:
        last = Plan(program.fingerprint, tokens=tokens, merge=merge, length=length)
        program = refit(find_sites(program), last, batches)
    plan = replace(course.plan, tokens=tokens, merge=merge, length=length)
    return Scheduled(program, plan, tuple(course.log))


def distilling(
    dense: Program, train_batches: Callable[[], Iterator[Batch]], *, steps: int, seed: int
) -> Train:
    """Turns of distillation from the dense program.

    Args:
        dense: the teacher.
        train_batches: gives endless batches without labels, anew for every turn.
        steps: of every turn.
        seed: of torch's random numbers in every turn.
    """
    return lambda slim: distil(slim, dense, train_batches(), steps=steps, seed=seed).program
