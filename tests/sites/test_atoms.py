"""Dimensions as trees of atoms: whatever is unified, sizes and positions stay true."""

from __future__ import annotations

import math
from itertools import product as every

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.sites.atoms import Dim, concat, cut_at, positions, product, unify, unit_numbers

QUICK = settings(max_examples=50, deadline=None)


def trees(depth: int = 2) -> st.SearchStrategy[Dim]:
    """Random dimensions: leaves, products and concatenations, one in the other."""
    leaf = st.integers(1, 4).map(Dim)
    if not depth:
        return leaf
    parts = st.lists(trees(depth - 1), min_size=2, max_size=3)
    return leaf | parts.map(product) | parts.map(concat)


factorings = st.lists(st.integers(2, 4), min_size=1, max_size=4)


@given(trees())
@QUICK
def test_a_dimension_is_as_large_as_its_parts_say(dim: Dim) -> None:
    assert positions(dim, {}) == list(range(dim.size))


@given(trees(), st.data())
@QUICK
def test_cutting_a_unit_removes_exactly_the_entries_that_belong_to_it(
    dim: Dim, data: st.DataObject
) -> None:
    leaf = data.draw(st.sampled_from(list(dim.leaves())))
    units = data.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))
    left = positions(dim, {leaf: tuple(sorted(units))})
    numbers = unit_numbers(dim, leaf)
    assert len(numbers) == dim.size
    assert left == [i for i, unit in enumerate(numbers) if unit == -1 or unit in units]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
@QUICK
def test_positions_in_a_product_are_those_of_a_row_major_tensor(
    sizes: list[int], data: st.DataObject
) -> None:
    leaves = [Dim(size) for size in sizes]
    kept = {
        leaf: tuple(sorted(data.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))))
        for leaf in leaves
    }
    numbered = torch.arange(math.prod(sizes)).view(sizes)
    for axis, leaf in enumerate(leaves):
        numbered = numbered.index_select(axis, torch.tensor(kept[leaf]))
    assert positions(product(leaves), kept) == numbered.flatten().tolist()


@given(factorings)
@QUICK
def test_a_whole_takes_on_the_structure_it_is_viewed_with(sizes: list[int]) -> None:
    whole, factors = Dim(math.prod(sizes)), [Dim(size) for size in sizes]
    unify(whole, product(factors), "here")
    assert [leaf.size for leaf in whole.leaves()] == sizes
    assert list(whole.leaves()) == [factor.root for factor in factors]
    assert not any(leaf.frozen for leaf in whole.leaves())


@given(factorings, st.data())
@QUICK
def test_two_ways_to_split_one_whole_refine_each_other(
    sizes: list[int], data: st.DataObject
) -> None:
    """Merging neighbours on either side leaves factorings that fit one another."""
    marks = data.draw(st.sets(st.integers(1, len(sizes)), max_size=len(sizes))) | {len(sizes)}
    ends = sorted(marks)
    merged = [math.prod(sizes[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    one, two = product([Dim(s) for s in sizes]), product([Dim(s) for s in merged])
    unify(one, two, "here")
    assert list(one.leaves()) == list(two.leaves())
    assert [leaf.size for leaf in one.leaves()] == sizes
    assert not any(leaf.frozen for leaf in one.leaves())


@given(trees(), trees(), st.data())
@QUICK
def test_unifying_anything_never_raises_and_freezes_or_agrees(
    one: Dim, two: Dim, data: st.DataObject
) -> None:
    sizes = (one.size, two.size)
    unify(one, two, "here")
    assert (one.size, two.size) == sizes
    assert positions(one, {}) == list(range(one.size))
    assert positions(two, {}) == list(range(two.size))
    if one.root is not two.root:
        assert all(leaf.frozen for dim in (one, two) for leaf in dim.leaves())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
@QUICK
def test_segments_are_cut_alone_and_the_rest_stays(sizes: list[int]) -> None:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    dim = Dim(sum(sizes))
    segments = cut_at(dim, ends, "here")
    for segment, end in zip(segments, ends, strict=True):
        left = positions(dim, {segment.root: (0,)})
        start = end - segment.size
        assert left == [i for i in range(dim.size) if i <= start or i >= end]


def test_layouts_that_clash_freeze_both_and_say_where() -> None:
    six, nine = product([Dim(2), Dim(3)]), product([Dim(3), Dim(2)])
    unify(six, nine, "view_3 (aten.view.default)")
    for leaf in (*six.leaves(), *nine.leaves()):
        assert leaf.frozen == ["view_3 (aten.view.default) reads it in another layout"]


def test_a_reason_to_freeze_follows_the_atom_through_later_unification() -> None:
    whole = Dim(12)
    whole.freeze("it is an input")
    parts = [Dim(3), Dim(4)]
    unify(product(parts), whole, "here")
    assert all(part.root.frozen == ["it is an input"] for part in parts)


def test_heads_of_two_projections_become_one_atom() -> None:
    columns = [Dim(12), Dim(12)]
    for dim in columns:
        unify(dim, product([Dim(4), Dim(3)]), "view")
    unify(columns[0], columns[1], "attention")
    heads, width = columns[0].leaves()
    assert [heads, width] == list(columns[1].leaves())
    assert positions(columns[1], {heads: (1, 3)}) == [
        3 * head + i for head, i in every((1, 3), range(3))
    ]
