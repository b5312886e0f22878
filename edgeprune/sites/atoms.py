"""Dimensions as trees of atoms, and the unification that ties them together.

A dimension is one atom, a product of dimensions (384 = 12 heads x 32), or a concatenation of
dimensions (a fused QKV). Operators say which dimensions are the same; unification refines both
sides to the common structure, so that in the end every leaf is one thing that can be cut alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate


class Dim:
    """One dimension of a tensor: a leaf (an atom), a product, or a concatenation.

    Attributes:
        size: number of entries.
        kind: "leaf", "product" (row-major) or "concat".
        parts: the factors or segments; empty for a leaf.
        frozen: why the atom cannot be cut, in the order found; leaves only.
        inexact: why what is left computes something else after a cut, in the order found; leaves
            only.
    """

    def __init__(self, size: int, kind: str = "leaf", parts: Sequence[Dim] = ()) -> None:
        self.size = size
        self.kind = kind
        self.parts = tuple(parts)
        self.frozen: list[str] = []
        self.inexact: list[str] = []
        self._same: Dim | None = None

    def __repr__(self) -> str:
        found = self.root
        if found.kind == "leaf":
            return f"{found.size}"
        return "(" + {"product": "x", "concat": "+"}[found.kind].join(map(repr, found.parts)) + ")"

    @property
    def root(self) -> Dim:
        """The dimension that stands for all that were found to be the same as this one."""
        found = self
        while found._same is not None:
            found = found._same
        # Short-cuts for the next look-up: in a deep network the chains are long.
        step = self
        while step._same is not None and step._same is not found:
            step._same, step = found, step._same
        return found

    def leaves(self) -> Iterator[Dim]:
        """The atoms, left to right."""
        found = self.root
        if found.kind == "leaf":
            yield found
        for part in found.parts:
            yield from part.leaves()

    def parts_within(self) -> Iterator[Dim]:
        """This dimension and all its parts, theirs included."""
        found = self.root
        yield found
        for part in found.parts:
            yield from part.parts_within()

    def contains(self, other: Dim) -> bool:
        """Whether ``other`` is this dimension or one of its parts."""
        found = self.root
        return found is other.root or any(part.contains(other) for part in found.parts)

    def freeze(self, reason: str) -> None:
        """Say that none of its atoms can be cut."""
        for leaf in self.leaves():
            if reason not in leaf.frozen:
                leaf.frozen.append(reason)

    def disturb(self, reason: str) -> None:
        """Say that a cut of any of its atoms is not exact."""
        for leaf in self.leaves():
            if reason not in leaf.inexact:
                leaf.inexact.append(reason)

    def become(self, other: Dim) -> None:
        """Let this dimension stand for ``other`` from now on."""
        mine, theirs = self.root, other.root
        if mine is theirs:
            return
        mine._same = theirs
        for reason in mine.frozen:
            theirs.freeze(reason)
        for reason in mine.inexact:
            theirs.disturb(reason)


def product(parts: Sequence[Dim]) -> Dim:
    """The row-major product of dimensions; of one, that one."""
    return parts[0] if len(parts) == 1 else Dim(math.prod(p.size for p in parts), "product", parts)


def concat(parts: Sequence[Dim]) -> Dim:
    """The concatenation of dimensions; of one, that one."""
    return parts[0] if len(parts) == 1 else Dim(sum(p.size for p in parts), "concat", parts)


def size_of(dim: Dim, new: Mapping[Dim, int]) -> int:
    """A dimension's size once some of the dimensions within it have a new one."""
    found = dim.root
    if found in new:
        return new[found]
    if found.kind == "leaf":
        return found.size
    sizes = (size_of(part, new) for part in found.parts)
    return math.prod(sizes) if found.kind == "product" else sum(sizes)


def unify(one: Dim, two: Dim, where: str) -> None:
    """Make two dimensions the same; where their structures clash, freeze both and say where."""
    a, b = one.root, two.root
    if a is b:
        return
    if a.size != b.size:
        _clash(a, b, where)
    elif a.kind == "leaf" or b.kind == "leaf":
        leaf, other = (a, b) if a.kind == "leaf" else (b, a)
        leaf.become(other)
    elif a.kind == b.kind:
        unify_sequences(a.parts, b.parts, a.kind, where)
        a.become(b)
    else:
        _clash(a, b, where)


def unify_sequences(one: Sequence[Dim], two: Sequence[Dim], kind: str, where: str) -> None:
    """Align two lists of factors (or segments) of one whole, left to right, splitting atoms."""
    left, right = list(_flat(one, kind)), list(_flat(two, kind))
    while left and right:
        a, b = left.pop(0), right.pop(0)
        if a.size == b.size:
            unify(a, b, where)
            continue
        (small, large), rest = ((a, b), right) if a.size < b.size else ((b, a), left)
        halves = _split(large, small.size, kind)
        if halves is None:
            _clash(product([a, *left]), product([b, *right]), where)
            return
        unify(small, halves[0], where)
        rest[:0] = halves[1:]


def _flat(parts: Sequence[Dim], kind: str) -> Iterator[Dim]:
    for part in parts:
        found = part.root
        if found.kind == kind:
            yield from _flat(found.parts, kind)
        else:
            yield found


def _split(large: Dim, first: int, kind: str) -> list[Dim] | None:
    """Split a leaf into a first part of size ``first`` and the rest; None when it cannot be."""
    if large.root.kind != "leaf" or (kind == "product" and (not first or large.size % first)):
        return None
    rest = large.size // first if kind == "product" else large.size - first
    whole = (product if kind == "product" else concat)([Dim(first), Dim(rest)])
    large.become(whole)
    return list(whole.parts)


def _clash(a: Dim, b: Dim, where: str) -> None:
    for each in (a, b):
        each.freeze(f"{where} reads it in another layout")


def cut_at(dim: Dim, boundaries: Sequence[int], where: str) -> list[Dim]:
    """Split a dimension into consecutive segments, each ending at one of ``boundaries``."""
    sizes = [end - start for start, end in zip([0, *boundaries], boundaries, strict=False)]
    segments = [Dim(size) for size in sizes]
    unify(dim, concat(segments), where)
    return segments


def positions(dim: Dim, kept: dict[Dim, tuple[int, ...]]) -> list[int]:
    """Which entries of the dimension stay when only ``kept[leaf]`` stay of some leaves."""
    found = dim.root
    if found.kind == "leaf":
        return list(kept.get(found, range(found.size)))
    inner = [positions(part, kept) for part in found.parts]
    if found.kind == "concat":
        starts = accumulate((part.size for part in found.parts), initial=0)
        return [start + i for start, part in zip(starts, inner, strict=False) for i in part]
    result = [0]
    for part, chosen in zip(found.parts, inner, strict=True):
        result = [outer * part.size + i for outer in result for i in chosen]
    return result


def unit_numbers(dim: Dim, leaf: Dim) -> list[int]:
    """For every entry of the dimension the unit of ``leaf`` it belongs to; -1 where to none."""
    found = dim.root
    if found is leaf.root:
        return list(range(found.size))
    if found.kind == "leaf":
        return [-1] * found.size
    inner = [unit_numbers(part, leaf) for part in found.parts]
    if found.kind == "concat":
        return [unit for part in inner for unit in part]
    result = [-1]
    for part in inner:
        result = [max(outer, unit) for outer in result for unit in part]
    return result
