"""The schedules' contract, and the course that one runs: a program on its way to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from edgeprune.errors import InputError
from edgeprune.importance import Evidence, rank_units
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.recover.refit import refit
from edgeprune.recover.statistics import reestimate
from edgeprune.registry import Registry
from edgeprune.sites import Site, Sites, find_sites
from edgeprune.surgery import apply
from edgeprune.task import Batch

Schedule: TypeAlias = "Callable[[Course], None]"
"""Brings a course to its target by cutting and training in turns."""
Train: TypeAlias = Callable[[Program], Program]
"""Trains a cut program for one turn; gives another program or the same."""

SCHEDULES: Registry[Schedule] = Registry("schedule")
DEFAULT = "one_shot"


@dataclass(frozen=True)
class Round:
    """What one cut left.

    Attributes:
        kept: width site -> units that stay, in the dense program's numbers.
        revived: width site -> those of them that the cut before had taken.
    """

    kept: dict[str, tuple[int, ...]]
    revived: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Course:
    """A program on its way to a plan; schedules call its verbs in turns.

    Attributes:
        sites: of the dense program.
        target: the plan asked for; all but ``one_shot`` take from it how many units stay.
        batches: calibration inputs without labels.
        rounds: in how many steps the width goes.
        criterion: what chooses the units of every step.
        program: as cut and trained so far.
        kept: width site -> units that are left, in the dense program's numbers.
        log: one entry per cut.
    """

    def __init__(
        self,
        sites: Sites,
        target: Plan,
        batches: Sequence[Batch],
        train: Train,
        rounds: int,
        criterion: str,
    ) -> None:
        self.sites = sites
        self.target = target
        self.batches = batches
        self.rounds = rounds
        self.criterion = criterion
        self.log: list[Round] = []
        self._train = train
        self._depth = {n: u for n, u in target.kept.items() if sites.get(n).kind == "depth"}
        width = [n for n in target.kept if n not in self._depth]
        self.kept = {name: tuple(range(sites.get(name).units)) for name in width}
        self.program = sites.program
        if self._depth:
            self.program = apply(sites.program, replace(self.plan, kept=self._depth), sites)

    @property
    def plan(self) -> Plan:
        """What the dense program has been cut to so far."""
        return Plan(self.sites.program.fingerprint, self._depth | self.kept, {})

    def falling(self, steps: int | None = None) -> Iterator[dict[str, int]]:
        """Width site -> how many units are left, step by step, the last as the target says."""
        steps = steps or self.rounds
        for step in range(1, steps + 1):
            yield {
                name: self.sites.get(name).units
                - (self.sites.get(name).units - len(self.target.kept[name])) * step // steps
                for name in self.kept
            }

    def cut(self, counts: Mapping[str, int]) -> None:
        """Take units from the program as it is, the least important first, and refit."""
        now = find_sites(self.program)
        orders = rank_units(Evidence(now, self.batches), self.criterion)
        kept, local = {}, {}
        for name, left in self.kept.items():
            if counts[name] == len(left):
                kept[name] = left
                continue
            here = self._now(now, name)
            local[here.name] = tuple(sorted(orders[here.name][: counts[name]]))
            kept[name] = tuple(left[unit] for unit in local[here.name])
        self.program = refit(now, Plan(self.program.fingerprint, local), self.batches)
        self.note(kept)

    def cut_from_dense(self, kept: Mapping[str, tuple[int, ...]]) -> None:
        """Cut the dense program anew to these units, and refit."""
        self.note(dict(kept))
        self.program = refit(self.sites, self.plan, self.batches)

    def rewind(self) -> None:
        """Give the units that are left the dense program's weights again."""
        cut = apply(self.sites.program, self.plan, self.sites)
        self.program = reestimate(cut, self.batches)

    def train(self) -> None:
        """One turn of training."""
        self.program = self._train(self.program)

    def note(self, kept: dict[str, tuple[int, ...]]) -> None:
        """Log what a cut leaves."""
        revived = {
            name: tuple(unit for unit in units if unit not in self.kept[name])
            for name, units in kept.items()
        }
        self.log.append(Round(kept, {name: units for name, units in revived.items() if units}))
        self.kept = kept

    def _now(self, now: Sites, name: str) -> Site:
        """The dense program's site in the cut one, where sites are numbered anew."""
        dense = self.sites.get(name)
        for site in now.cuttable:
            if (
                site.axis == dense.axis
                and site.units == len(self.kept[name])
                and not set(site.weights).isdisjoint(dense.weights)
            ):
                return site
        raise InputError(
            f"schedule: '{name}' is not found again in the cut program, so it cannot be cut "
            "further. Use the schedule one_shot."
        )
