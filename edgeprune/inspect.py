"""Sites as a person reads them: layers that are alike share a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

from rich.table import Table

from edgeprune.sites import Site

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Row:
    """One or more sites that differ in nothing but the numbers in their names.

    Attributes:
        name: theirs, with ranges for the numbers: ``encoder.layer.{0…47}.heads``.
        count: how many sites these are.
        site: the first of them.
    """

    name: str
    count: int
    site: Site


def rows_of(sites: Iterable[Site]) -> tuple[Row, ...]:
    """Sites put together where they are alike, in the order in which each kind comes first."""
    alike: dict[object, list[Site]] = {}
    for site in sites:
        pattern = _NUMBER.sub("#", site.name)
        facts = (site.axis, site.units, site.parameters, site.exact, site.why_not, site.pinned)
        alike.setdefault((pattern, facts, site.step), []).append(site)
    return tuple(row for group in alike.values() for row in _merged(group))


def sites_table(rows: Iterable[Row]) -> Table:
    """The rows for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("site", overflow="fold")
    table.add_column("axis")
    for title in ("sites", "units", "weights"):
        table.add_column(title, justify="right")
    table.add_column("can be cut", overflow="fold")
    for row in rows:
        site = row.site
        weights = f"{site.parameters:,}" if site.parameters else ""
        style = None if site.why_not is None else "dim"
        cells = (row.name, site.axis, str(row.count), f"{site.units:,}", weights, verdict(site))
        table.add_row(*cells, style=style)
    return table


def verdict(site: Site) -> str:
    """Whether a site can be cut, in words."""
    if site.why_not is not None:
        return f"no: {site.why_not}"
    words = "yes" if site.exact else "yes, inexactly"
    if site.step > 1:
        words += f", in steps of {site.step}"
    if site.pinned:
        words += f"; token {', '.join(map(str, site.pinned))} stays"
    return words


def _merged(group: Sequence[Site]) -> list[Row]:
    """One row if the numbers in the names form a grid, else one per first number."""
    numbers = [tuple(map(int, _NUMBER.findall(site.name))) for site in group]
    values = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if len(set(numbers)) == prod(map(len, values)):
        ranges = iter([_range(column) for column in values])
        name = _NUMBER.sub(lambda _: next(ranges), group[0].name)
        return [Row(name, len(group), group[0])]
    by_first = groupby(group, lambda site: _NUMBER.findall(site.name)[0])
    parts = [list(part) for _, part in by_first]
    if len(parts) == 1:
        return [Row(site.name, 1, site) for site in group]
    return [row for part in parts for row in _merged(part)]


def _range(numbers: Sequence[int]) -> str:
    """``{0…4,7}``; a single number stands alone."""
    if len(numbers) == 1:
        return str(numbers[0])
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    written = (str(s[0]) if len(s) == 1 else f"{s[0]}…{s[-1]}" for s in spans)
    return "{" + ",".join(written) + "}"
