"""Which families can be cut along which axes, and whether the result is right, trains and runs.

For every family and axis a plan over that axis alone: masked equals removed (float64),
gradients reach every weight and a step lowers the loss, and the lowered file computes what the
program does. So for a plan with half of the floating point operations, and for the one that a
solver chooses. A family is whole when all of that holds, and at least 90% of its linear and
convolution weights lie behind cuttable sites. Writes docs/coverage.md anew; tests hold it against
fresh runs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _bench import claim, emit
from families import FAMILIES, Family
from families.checks import (
    flops,
    half_plan,
    masked_equals_removed,
    random_plan,
    runs,
    share_behind_sites,
    solved_plan,
    trains,
)

from edgeprune import console
from edgeprune.errors import EdgepruneError
from edgeprune.plan import Plan
from edgeprune.sites import Site, Sites
from edgeprune.surgery import apply

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
EXACT, RUNS = 1e-9, 1e-4
SHARE = 0.9
SEEDS = (0, 1, 2)
# Drawn until one cuts anything: none does where nothing on the axis is exact.
DRAWS = 10
HEADINGS = ("family", "axis", "sites", "masked = removed", "trains", ".pte runs")
ROW = re.compile(r"^\| (\S+) \| (\S+) \| (\d+) \|", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A family cut along one axis, or along all.

    Attributes:
        sites: that can be cut.
        removed: largest difference between cut and masked; None where masking is not exact.
        trains: whether it does.
        pte: largest difference between the file and the program; None when it does not lower.
        note: why something fell short.
    """

    family: str
    axis: str
    sites: int
    removed: float | None
    trains: bool
    pte: float | None
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether all holds."""
        exact = self.removed is None or self.removed <= EXACT
        return exact and self.trains and self.pte is not None and self.pte <= RUNS


@dataclass(frozen=True)
class Coverage:
    """One family.

    Attributes:
        cells: one an axis, then one for the plan of half the operations, axis ``half``, and one
            for the solver's, axis ``solved``.
        share: of linear and convolution weights behind cuttable sites.
        flops: share of the operations that ``half`` leaves.
    """

    family: str
    cells: tuple[Cell, ...]
    share: float
    flops: float

    @property
    def whole(self) -> bool:
        """Whether the family counts as covered."""
        return self.share >= SHARE and self.flops <= 0.5 and all(c.right for c in self.cells)


def cover(family: Family, axes: bool = True) -> Coverage:
    """Try everything on one family; with ``axes`` false only what cuts several at once."""
    single, double = family.sites(), family.sites(torch.float64)
    found = dict.fromkeys(site.axis for site in single.sites if site.why_not is None)
    cells = [_cell(family, single, double, axis) for axis in (found if axes else ())]
    inputs = family.draw(2, 5)
    plan = half_plan(single, inputs)
    left = flops(apply(single.program, plan, single), inputs) / flops(single.program, inputs)
    cells.append(_half(family, single, double, plan))
    cells.append(_solved(family, single, double))
    return Coverage(family.name, tuple(cells), share_behind_sites(single), left)


def _cell(family: Family, single: Sites, double: Sites, axis: str) -> Cell:
    chosen = [site for site in single.sites if site.axis == axis and site.why_not is None]
    drawn = (random_plan(double, seed, (axis,)) for seed in range(DRAWS))
    compared = [plan for plan in drawn if plan.kept][:1]
    return _tried(family, axis, len(chosen), double, compared, single, _one(single, chosen))


def _one(sites: Sites, chosen: Sequence[Site]) -> Plan:
    """Half of every width site, the last sub-layer or layer, or one length or rank."""
    whole, last = Plan(sites.program.fingerprint), chosen[-1]
    if last.kind == "depth":
        return replace(whole, kept={last.name: ()})
    if last.kind == "rank":
        return replace(whole, rank={last.name: max(1, last.units // 4)})
    if last.axis == "tokens":
        return replace(whole, tokens={last.name: max(len(last.pinned), last.units // 2)})
    if last.kind == "length":
        return replace(whole, length={last.name: last.units - last.step})
    return replace(whole, kept={s.name: tuple(range(max(1, s.units // 2))) for s in chosen})


def _half(family: Family, single: Sites, double: Sites, plan: Plan) -> Cell:
    plans = [random_plan(double, seed) for seed in SEEDS]
    return _tried(family, "half", len(plan.kept), double, plans, single, plan)


def _solved(family: Family, single: Sites, double: Sites) -> Cell:
    plan = solved_plan(family)
    widths = Plan(double.program.fingerprint, plan.kept)  # masking has no word for fewer tokens
    count = len(plan.kept) + len(plan.tokens)
    return _tried(family, "solved", count, double, [widths], single, plan)


def _tried(
    family: Family,
    axis: str,
    count: int,
    double: Sites,
    plans: Sequence[Plan],
    single: Sites,
    plan: Plan,
) -> Cell:
    """``plans`` are compared with masking, ``plan`` is trained, lowered and run."""
    inputs = family.draw(2, 5)
    removed = max((masked_equals_removed(family, double, each) for each in plans), default=None)
    slim = apply(single.program, plan, single)
    learns = trains(slim, inputs)
    try:
        pte, note = runs(slim, inputs), ""
    except EdgepruneError as error:
        pte, note = None, str(error)
    return Cell(family.name, axis, count, removed, learns, pte, note)


def _cover(name: str, axes: bool) -> Coverage:
    torch.set_num_threads(1)
    console.configure(quiet=True)
    return cover(FAMILIES.named(name), axes)


def committed() -> dict[tuple[str, str], int]:
    """(family, axis) -> number of sites, as the page says."""
    return {(name, axis): int(sites) for name, axis, sites in ROW.findall(PAGE.read_text())}


def page(found: Sequence[Coverage]) -> str:
    """docs/coverage.md."""
    assert __doc__
    words = __doc__.strip().replace(
        "Writes docs/coverage.md", "`tools/coverage.py` writes this page"
    )
    whole = sum(each.whole for each in found)
    lines = ["# Coverage", "", words]
    lines += [
        "",
        f"{whole} of {len(found)} families are whole. Differences are the largest seen, relative "
        "to the largest output. **-**: masking does not say, because a normalisation runs over the "
        "axis, or a length, a rank, ids or a layer with its norms goes; the engine's tests compare "
        "those otherwise. **half**: all widths at once, at half of the operations. **solved**: "
        "what `edgeprune plan --profile pixel8 --precision fp32 --budget latency=60%` chooses, "
        "costs estimated, damage measured on noise; where it drops tokens too, only its widths are "
        "compared with masking.",
        "",
        _line(HEADINGS),
        _line(["---"] * len(HEADINGS)),
    ]
    lines += [_line(_words(cell)) for each in found for cell in each.cells]
    lines += [
        "",
        "| family | weights behind sites | operations left | whole |",
        "|---|---|---|---|",
    ]
    lines += [
        _line((e.family, f"{e.share:.0%}", f"{e.flops:.0%}", "yes" if e.whole else "no"))
        for e in found
    ]
    return "\n".join(lines) + "\n"


def _words(cell: Cell) -> Sequence[str]:
    removed = "-" if cell.removed is None else f"{cell.removed:.0e}"
    pte = f"no: {cell.note}" if cell.pte is None else f"{cell.pte:.0e}"
    return (
        cell.family,
        cell.axis,
        str(cell.sites),
        removed,
        "yes" if cell.trains else "no",
        pte,
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rows(found: Sequence[Coverage]) -> list[dict[str, Any]]:
    return [
        dict(zip(HEADINGS, _words(cell), strict=True)) | {"whole": each.whole}
        for each in found
        for cell in each.cells
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="only these; the page is then left as it is")
    parser.add_argument("--quick", action="store_true", help="only the plans that cut several axes")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    names = asked.families or list(FAMILIES)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = []
        for each in pool.map(partial(_cover, axes=not asked.quick), names):
            print(each.family, "whole" if each.whole else "not whole", file=sys.stderr)
            found.append(each)
    if not asked.families and not asked.quick:
        PAGE.write_text(page(found))
    differences = [0.0, *(c.removed for each in found for c in each.cells if c.removed is not None)]
    claims = [
        claim("families", len(found), "families", len(found)),
        claim("families_whole", sum(each.whole for each in found), "families", len(found)),
        claim("worst_abs_diff", max(differences), "of the largest output", len(differences)),
    ]
    emit("Families and axes", _rows(found), claims, asked.json)


if __name__ == "__main__":
    main()
