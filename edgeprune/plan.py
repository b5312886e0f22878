"""The Plan noun: what is kept of every site. Text, diffable, hashable, versioned."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeprune import files
from edgeprune.errors import InputError
from edgeprune.sites import Site, Sites
from edgeprune.sites.atoms import positions
from edgeprune.sites.length import hides_pairs
from edgeprune.sites.sizes import sizes_at


@dataclass(frozen=True)
class Plan:
    """Which units of which sites stay. A site that is not named stays whole.

    Attributes:
        program: fingerprint of the program it is for.
        kept: width site -> numbers of the units that stay, ascending; sub-layer or layer -> ()
            (removed).
        tokens: tokens site -> how many tokens go on.
        rank: rank site -> rank of the two factors that stand for the table.
        fallback: vocabulary site -> the kept id whose row stands for those removed; the first kept
            one where it is not named.
        merge: tokens sites where the others are averaged into those that go on, not dropped.
        length: resolution, time or points site -> new size. Cut first: tokens are counted at it.
    """

    program: str
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    rank: dict[str, int] = field(default_factory=dict)
    fallback: dict[str, int] = field(default_factory=dict)
    merge: frozenset[str] = frozenset()
    length: dict[str, int] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Identifies the plan."""
        return files.content_hash(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As stored in ``plan.json``, sites in order of their names."""
        rare = {"rank": self.rank, "fallback": self.fallback, "length": self.length}
        return {
            "program": self.program,
            "kept": {name: list(self.kept[name]) for name in sorted(self.kept)},
            "tokens": _sorted(self.tokens),
            **({"merge": sorted(self.merge)} if self.merge else {}),
            **{key: _sorted(numbers) for key, numbers in rare.items() if numbers},
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Plan:
        """Read what :meth:`to_json` gave.

        Raises:
            KeyError, TypeError: a field is missing, or is not of its type.
        """
        kept = _typed(body, "kept", dict)
        body = {"rank": {}, "fallback": {}, "merge": [], "length": {}} | body
        merge = _typed(body, "merge", list)
        return cls(
            _typed(body, "program", str),
            {name: _units(kept, name) for name in kept},
            merge=frozenset(_typed(merge, i, str) for i in range(len(merge))),
            **{key: _numbers(body, key) for key in ("tokens", "rank", "fallback", "length")},
        )

    def write(self, path: str | os.PathLike[str], **more: Any) -> Path:
        """Write ``plan.json``, with further fields beside the plan."""
        return files.write_json(path, "plan", self.to_json() | more)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a ``plan.json``.

        Raises:
            InputError: missing, malformed, or from a future version.
        """
        body = files.read_json(path, "plan")
        try:
            return cls.from_json(body)
        except KeyError as error:
            raise InputError(f"{path}: not a complete plan, {error} is missing") from error
        except TypeError as error:
            raise InputError(f"{path}: not a plan ({error})") from error

    def only(self, *names: str) -> Plan:
        """The part of the plan about these sites."""
        return replace(
            self,
            kept={name: self.kept[name] for name in names if name in self.kept},
            tokens={name: self.tokens[name] for name in names if name in self.tokens},
            rank={name: self.rank[name] for name in names if name in self.rank},
            fallback={name: self.fallback[name] for name in names if name in self.fallback},
            merge=self.merge & set(names),
            length={name: self.length[name] for name in names if name in self.length},
        )


def _sorted(numbers: dict[str, int]) -> dict[str, int]:
    return {name: numbers[name] for name in sorted(numbers)}


def _units(kept: Any, name: str) -> tuple[int, ...]:
    units = _typed(kept, name, list)
    return tuple(_typed(units, i, int) for i in range(len(units)))


def _numbers(body: Any, key: str) -> dict[str, int]:
    found = _typed(body, key, dict)
    return {name: _typed(found, name, int) for name in found}


def _typed(holder: Any, key: Any, wanted: type) -> Any:
    """``holder[key]``, which must be a ``wanted`` and no subclass: True is no number of a unit."""
    found = holder[key]
    if type(found) is not wanted:
        raise TypeError(f"{key!r} is {found!r}, wanted {wanted.__name__}")
    return found


def check_plan(plan: Plan, sites: Sites) -> None:
    """Check that a plan can be applied to the sites' program.

    Raises:
        InputError: it is another model's plan, or names what is not there or cannot be cut.
    """
    if plan.program != sites.program.fingerprint:
        raise InputError(
            f"plan: made for a model with fingerprint {plan.program}, but this one has "
            f"{sites.program.fingerprint}. Apply it to the program it was made from."
        )
    for name, units in plan.kept.items():
        _check_units(sites.get(name), units)
    left: dict[object, int] = {}
    for stream in sites.streams:
        if stream.name in plan.tokens:
            keep = plan.tokens[stream.name]
            before = left.get(stream.tokens, stream.tokens.size)
            _check_tokens(sites.get(stream.name), keep, before)
            left[stream.tokens] = keep
            _check_ranked(plan, stream.name, stream.residual.name, stream.residual.layer)
    for stream in sites.streams:
        if stream.name in plan.merge:
            _check_merge(plan, sites.get(stream.name), hides_pairs(sites.flow, stream))
    for name in plan.merge - plan.tokens.keys():
        raise InputError(f"plan: merges at '{name}', but keeps no number of tokens there")
    for name in plan.tokens:
        if sites.get(name).axis != "tokens":
            raise InputError(f"plan: '{name}' is no tokens site, but the plan keeps tokens there")
    for name, rank in plan.rank.items():
        _check_rank(plan, sites, name, rank)
    for name, unit in plan.fallback.items():
        _check_fallback(plan, sites, name, unit)
    for name, size in plan.length.items():
        _check_length(sites, name, size)


def _check_units(site: Site, units: tuple[int, ...]) -> None:
    _check_cuttable(site)
    if site.kind in ("length", "rank"):
        field_ = {"tokens": "tokens", "rank": "rank"}.get(site.axis, "length")
        raise InputError(
            f"plan: '{site.name}' is a {site.axis} site; it belongs under \"{field_}\""
        )
    if site.kind == "depth":
        if units:
            raise InputError(
                f"plan: '{site.name}' is a {site.axis}: got {units}, wanted [] (removed)"
            )
        return
    if not units:
        raise InputError(
            f"plan: keeps no unit of '{site.name}'. Remove its sub-layer instead, or leave it out."
        )
    if list(units) != sorted(set(units)) or units[0] < 0 or units[-1] >= site.units:
        raise InputError(
            f"plan: units of '{site.name}' must be ascending numbers from 0 to {site.units - 1}"
        )


def _check_tokens(site: Site, keep: int, before: int) -> None:
    _check_cuttable(site)
    least = len(site.pinned) or 1
    if not least <= keep <= before:
        raise InputError(
            f"plan: '{site.name}' keeps {keep} tokens, wanted {least} to {before} "
            "(never more than came in)"
        )


def _check_length(sites: Sites, name: str, size: int) -> None:
    site = sites.get(name)
    if name not in sites.lengths:
        raise InputError(f"plan: '{name}' is no length of the inputs, but the plan sizes it")
    _check_cuttable(site)
    if not 1 <= size <= site.units:
        raise InputError(f"plan: '{name}' at {size}, wanted 1 to {site.units}")
    try:
        sizes_at(sites.flow, sites.lengths[name].dims, size)
    except InputError as error:
        raise InputError(f"plan: '{name}' at {size}: {error}") from error


def _check_merge(plan: Plan, site: Site, causal: bool) -> None:
    if causal:
        raise InputError(
            f"plan: '{site.name}' cannot merge tokens: its attention hides some from others, and "
            "an average of both would tell. Drop them there."
        )
    keep = plan.tokens.get(site.name, site.units)
    if keep <= len(site.pinned):
        raise InputError(
            f"plan: '{site.name}' keeps {keep} tokens, all pinned, but merges the others into "
            f"those that are not. Keep more than {len(site.pinned)}."
        )


def _check_ranked(plan: Plan, name: str, *removable: str) -> None:
    for removed in removable:
        if removed in plan.kept:
            raise InputError(
                f"plan: '{name}' ranks tokens by the attention of '{removed}', which the plan "
                "removes. Select tokens in another layer."
            )


def _check_rank(plan: Plan, sites: Sites, name: str, rank: int) -> None:
    """As two factors the table must be smaller than what the plan's other cuts leave of it."""
    site = sites.get(name)
    if site.kind != "rank":
        raise InputError(f"plan: '{name}' is no rank site, but the plan gives it a rank")
    _check_cuttable(site)
    (path, _), _ = site.weights
    kept = {sites.atoms[n].root: units for n, units in plan.kept.items() if n in sites.atoms}
    rows, columns = (len(positions(dim, kept)) for dim in sites.flow.tensors[path])
    most = (rows * columns - 1) // (rows + columns)
    if not 1 <= rank <= most:
        raise InputError(
            f"plan: '{name}' gets rank {rank}, wanted 1 to {most}: above that two factors of "
            f"{rows} x rank and rank x {columns} are no smaller than the table"
        )


def _check_fallback(plan: Plan, sites: Sites, name: str, unit: int) -> None:
    if sites.get(name).axis != "vocabulary" or unit not in plan.kept.get(name, ()):
        raise InputError(
            f"plan: fall-back {unit} of '{name}' must be an id that the plan keeps of a vocabulary"
        )


def _check_cuttable(site: Site) -> None:
    if site.why_not is not None:
        raise InputError(f"plan: '{site.name}' cannot be cut: {site.why_not}")
