"""Sites as a person reads them: layers that are alike share a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from rich.table import Table

from edgeprune.sites import Site
from edgeprune.weigh import Behind, Leaving

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
# ``mul_3 (aten.mul.Tensor, at model.py:57)``
_PLACE = re.compile(r"(?:_\d+)? \(([\w.]+)(?:, [^()]*:\d+)?\)")


@dataclass(frozen=True)
class Row:
    """One or more sites that differ in nothing but the numbers in their names.

    Attributes:
        name: theirs, with ranges for the numbers: ``encoder.layer.{0…47}.heads``.
        sites: these, in the order of the graph.
        behind: what is behind each of them, where it is known.
    """

    name: str
    sites: tuple[Site, ...]
    behind: Behind | None = None

    @property
    def count(self) -> int:
        """How many sites these are."""
        return len(self.sites)

    @property
    def site(self) -> Site:
        """The first of them."""
        return self.sites[0]


def rows_of(sites: Iterable[Site], behind: Mapping[str, Behind] | None = None) -> tuple[Row, ...]:
    """Sites put together where they are alike, in the order in which each kind comes first.

    Args:
        sites: in the order of the graph.
        behind: what is behind them, from ``edgeprune.weigh``.
    """
    known = behind or {}

    def facts(site: Site) -> tuple[object, ...]:
        weighed = known.get(site.name)
        numbers = (site.units, site.parameters, weighed and (weighed.whole, weighed.half))
        notes = (_common(site.why_not), _common(site.inexact), site.opt_in)
        return (site.axis, *numbers, *notes, site.pinned, site.step)

    found = rows_by(sites, facts)
    return tuple(replace(row, behind=known.get(row.site.name)) for row in found)


def rows_by(sites: Iterable[Site], facts: Callable[[Site], object]) -> tuple[Row, ...]:
    """Sites put together where their names and ``facts`` are alike."""
    alike: dict[object, list[Site]] = {}
    for site in sites:
        alike.setdefault((_NUMBER.sub("#", site.name), facts(site)), []).append(site)
    return tuple(row for group in alike.values() for row in _merged(group))


def sites_table(rows: Sequence[Row], total: Leaving | None = None) -> Table:
    """The rows for a terminal; shares of ``total`` where what is behind them is known."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("site", overflow="fold", width=name_width(row.name for row in rows))
    table.add_column("axis", no_wrap=True)
    for title in ("units", "behind", "half"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("can be cut", overflow="fold")
    for row in rows:
        site = row.site
        units = f"{row.count} × {site.units:,}" if row.count > 1 else f"{site.units:,}"
        shares = _shares(row.behind, total)
        style = None if site.why_not is None else "dim"
        table.add_row(row.name, site.axis, units, *shares, verdict(site), style=style)
    return table


def name_width(names: Iterable[str]) -> int:
    """What a column of names takes: it folds longer ones."""
    return max(len("damage of"), min(max(map(len, names), default=0), 30))


def _shares(behind: Behind | None, total: Leaving | None) -> tuple[str, str]:
    """Weights and FLOPs that leave with all units and with half of them, as shares."""
    if behind is None or total is None:
        return "", ""
    return _percents(behind.whole, total), _percents(behind.half, total)


def _percents(leaving: Leaving, total: Leaving) -> str:
    weights = percent(leaving.parameters, total.parameters) if leaving.parameters else "–"
    flops = percent(leaving.flops, total.flops) if leaving.flops else "–"
    return f"{weights} · {flops}"


def percent(part: float, whole: float) -> str:
    """Two digits that matter: 0.3%, 4.1%, 52%."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f}%" if share >= 9.95 else f"{share:.1f}%"


def verdict(site: Site) -> str:
    """Whether a site can be cut, in words."""
    if site.why_not is not None:
        return f"no: {site.why_not}"
    words = "yes" if site.inexact is None else f"yes, inexactly: {site.inexact}"
    if site.opt_in is not None:
        words += f", if a plan names it: {site.opt_in}"
    if site.step > 1:
        words += f", in steps of {site.step}"
    if site.pinned:
        words += f"; token {', '.join(map(str, site.pinned))} stays"
    return words


def _common(reason: str | None) -> str | None:
    """A reason without the operator's number and line, in which layers that are alike differ."""
    return reason and _PLACE.sub(r" (\1)", reason)


def _merged(group: Sequence[Site]) -> list[Row]:
    """One row if the numbers in the names form a grid, else one per first number."""
    numbers = [tuple(map(int, _NUMBER.findall(site.name))) for site in group]
    values = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if len(set(numbers)) == prod(map(len, values)):
        ranges = iter([_range(column) for column in values])
        name = _NUMBER.sub(lambda _: next(ranges), group[0].name)
        return [Row(name, tuple(group))]
    by_first = groupby(group, lambda site: _NUMBER.findall(site.name)[0])
    parts = [list(part) for _, part in by_first]
    if len(parts) == 1:
        return [Row(site.name, (site,)) for site in group]
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
