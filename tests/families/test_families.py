"""Every family: what docs/coverage.md says of its sites is so, and its cuts are right.

By day one plan each, and a solved one trained, saved and lowered for those with operators of their
own; by night all of it, axis by axis.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from coverage import EXACT, RUNS, committed, cover
from families import FAMILIES, checks

from edgeprune.plan import Plan
from edgeprune.program.program import as_tuple
from edgeprune.surgery import apply

DOUBLE = torch.float64
BY_DAY = ("bert", "gan-generator")
# One family after the other on one worker, captured once.
ALL = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FAMILIES]
SOME = [
    each
    if each.values[0] in BY_DAY
    else pytest.param(each.values[0], marks=[*each.marks, pytest.mark.nightly])
    for each in ALL
]


@pytest.mark.parametrize("name", ALL)
def test_the_page_has_the_sites_that_a_family_has(name: str) -> None:
    found = FAMILIES[name].sites(DOUBLE)
    counts = Counter(site.axis for site in found.sites if site.why_not is None)
    said = {axis: count for (family, axis), count in committed().items() if family == name}
    assert {axis: said[axis] for axis in said.keys() - {"half", "solved"}} == counts
    assert set(FAMILIES[name].axes) <= counts.keys()
    assert not found.flow.unknown


@pytest.mark.parametrize("name", ALL)
def test_masked_equals_removed(name: str) -> None:
    found = FAMILIES[name].sites(DOUBLE)
    plan = checks.random_plan(found, 0)
    assert checks.masked_equals_removed(FAMILIES[name], found, plan) <= EXACT


@pytest.mark.parametrize("name", SOME)
def test_a_cut_program_computes_something_else_trains_and_reloads(name: str) -> None:
    found, given = FAMILIES[name].sites(DOUBLE), FAMILIES[name].draw(3, 5, DOUBLE)
    slim = apply(found.program, checks.random_plan(found, 1), found)
    with torch.no_grad():
        whole, cut = as_tuple(found.program(*given)), as_tuple(slim(*given))
    assert checks.difference(cut, whole) > 1e-3
    assert slim.parameters < found.program.parameters
    assert checks.trains(slim, given)
    assert checks.reloads(slim, given) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", ALL)
def test_the_lowered_file_gives_the_same_outputs(name: str) -> None:
    found = FAMILIES[name].sites()
    slim = apply(found.program, checks.random_plan(found, 1), found)
    assert checks.runs(slim, FAMILIES[name].draw(2, 5)) <= RUNS


@pytest.mark.parametrize("name", SOME)
def test_a_solved_plan_is_right_trains_reloads_and_runs(name: str) -> None:
    family, plan = FAMILIES[name], checks.solved_plan(FAMILIES[name])
    single, double, given = family.sites(), family.sites(DOUBLE), family.draw(2, 5)
    widths = Plan(double.program.fingerprint, plan.kept)
    assert checks.masked_equals_removed(family, double, widths) <= EXACT
    slim = apply(single.program, plan, single)
    assert checks.flops(slim, given) < 0.8 * checks.flops(single.program, given)
    assert checks.trains(slim, given)
    assert checks.reloads(slim, given) == 0
    assert checks.runs(slim, given) <= RUNS


@pytest.mark.nightly
@pytest.mark.parametrize("name", ALL)
def test_masked_equals_removed_over_many_plans(name: str) -> None:
    found = FAMILIES[name].sites(DOUBLE)
    plans = [checks.random_plan(found, seed) for seed in range(60)]
    errors = [checks.masked_equals_removed(FAMILIES[name], found, plan) for plan in plans]
    assert max(errors) <= EXACT


@pytest.mark.nightly
@pytest.mark.parametrize("name", ALL)
def test_every_axis_of_a_family_is_right(name: str) -> None:
    found = cover(FAMILIES[name])
    assert found.whole, found
