"""From sites, damage and cost to the solver's question, and from its answer back to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeprune.cost import CostTable
from edgeprune.importance import Damage
from edgeprune.plan import Plan
from edgeprune.profile import Multiples
from edgeprune.sites import Site, Sites
from edgeprune.sites.depth import Residual
from edgeprune.sites.length import TokenStream
from edgeprune.sites.parts import Part, spanning_sites, width_sites
from edgeprune.solve import Block, FrontPoint, Problem
from edgeprune.solve.problem import Product
from edgeprune.surgery.pieces import token_dim

# Options of a wide site: enough for the solver to hit a budget within a percent.
MOST_OPTIONS = 24
# XNNPACK's convolutions work on 8 channels at a time, or on 16.
CHANNELS = 8
# Token levels as shares of the full length.
TOKEN_SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625)
AXES = ("depth", "width", "length")


@dataclass(frozen=True)
class Option:
    """One way to run a sub-layer: ``units`` of its site kept; 0 removes it."""

    units: int

    @property
    def label(self) -> str:
        """As shown in messages."""
        return str(self.units) if self.units else "none"


@dataclass(frozen=True)
class Choices:
    """What may be chosen in one sub-layer, or of one site that spans several parts.

    Attributes:
        residual: None for a spanning site.
    """

    residual: Residual | None
    site: Site | None
    options: tuple[Option, ...]
    stream: TokenStream | None

    @property
    def name(self) -> str:
        """Of the sub-layer, or of the spanning site."""
        if self.residual is not None:
            return self.residual.name
        assert self.site is not None
        return self.site.name


def width_levels(site: Site, multiples: Multiples) -> tuple[int, ...]:
    """Numbers of units worth keeping, ascending, all units last: multiples the device likes."""
    step = multiples.ffn if site.axis == "ffn" else multiples.heads if site.axis == "heads" else 1
    step = step if site.units >= 4 * step else 1
    if site.axis == "channels":
        step = max(each for each in (1, 2, 4, CHANNELS) if each == 1 or site.units >= 4 * each)
    while site.units / step > MOST_OPTIONS:
        step *= 2
    return (*range(step, site.units, step), site.units)


def token_levels(sites: Sites, multiples: Multiples) -> tuple[int, ...]:
    """Token counts worth offering on the longest stream, descending from all."""
    streams = _main_streams(sites)
    if not streams:
        return (1,)
    size, least = streams[0].tokens.size, max(len(s.pinned) or 1 for s in streams)
    step = multiples.tokens if size >= 4 * multiples.tokens else 1
    found = {max(least, step, round(size * share / step) * step) for share in TOKEN_SHARES[1:]}
    return (size, *sorted((level for level in found if level < size), reverse=True))


def _main_streams(sites: Sites) -> list[TokenStream]:
    """The streams that can be shortened; of several lengths (two towers) those of the longest.

    The solver follows one token count through the model; a second one stays as it is.
    """
    usable = [stream for stream in sites.streams if stream.why_not is None]
    longest = max(usable, key=lambda s: s.tokens.size, default=None)
    return [stream for stream in usable if longest and stream.tokens is longest.tokens]


def choices_of(
    sites: Sites, multiples: Multiples, axes: tuple[str, ...] = AXES
) -> tuple[Choices, ...]:
    """What may be chosen, sub-layer by sub-layer, then of every spanning site.

    Args:
        axes: the open ones.
    """
    streams = {s.residual.name: s for s in _main_streams(sites)}
    found = []
    for residual in sites.residuals:
        site = next(iter(width_sites(sites, residual)), None)
        full = site.units if site else 1
        units = [0] if "depth" in axes else []
        if site and "width" in axes:
            units += list(width_levels(site, multiples)[:-1])
        stream = streams.get(residual.name) if "length" in axes else None
        options = tuple(Option(each) for each in (*units, full))
        found.append(Choices(residual, site, options, stream))
    for site in spanning_sites(sites) if "width" in axes else ():
        options = tuple(Option(each) for each in width_levels(site, multiples))
        found.append(Choices(None, site, options, None))
    return tuple(found)


def formulate(
    sites: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    damage: Damage,
    table: CostTable,
    weights: Mapping[str, float] | None = None,
) -> Problem:
    """The knapsack: every sub-layer's options with what they cost and what they do.

    Args:
        sites: of the dense program.
        choices: from :func:`choices_of`.
        levels: token counts, descending.
        damage: measured, one site at a time.
        table: measured or estimated cost.
        weights: axis -> factor on its damage; single-site damages do not add up exactly, and
            other factors give other plans of the same latency to choose from.
    """
    factor = dict.fromkeys(AXES, 1.0) | dict(weights or {})
    main = {stream.tokens for stream in _main_streams(sites)}
    places = {choice.name: place for place, choice in enumerate(choices)}
    coupled = {part.name for part in sites.parts if places.keys() & set(part.spanning)}
    counts = []
    for choice in choices:
        tokens = choice.residual and token_dim(sites, choice.residual)
        followed = tokens in main or choice.residual is None
        counts.append(levels if followed else (tokens.size if tokens else 1,) * len(levels))
    blocks = [
        _block(choice, count, damage, table, factor, choice.name in coupled)
        for choice, count in zip(choices, counts, strict=True)
    ]
    products = [
        _product(part, places, choices, counts[places[part.name]] if part.residual else (1,), table)
        for part in sites.parts
        if part.name in coupled
    ]
    constant = [p.name for p in sites.parts if p.name not in coupled and p.name not in places]
    return Problem(
        levels,
        tuple(blocks),
        fixed_latency_ms=table.fixed_ms + sum(table.block_ms(name, 1, 1) for name in constant),
        fixed_weight_mb=table.fixed_weight_mb
        + sum(table.block_weight_mb(name, 1) for name in constant),
        fixed_activation_mb=max(
            table.fixed_activation_mb,
            *(table.block_activation_mb(name, 1, 1) for name in constant),
            0.0,
        ),
        products=tuple(products),
    )


def plan_of(
    sites: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    damage: Damage,
    point: FrontPoint,
) -> Plan:
    """The plan that a solver's point stands for."""
    kept: dict[str, tuple[int, ...]] = {}
    tokens: dict[str, int] = {}
    for i, choice in enumerate(choices):
        units = choice.options[point.choices[i]].units
        if not units:
            kept[choice.name] = ()
        elif choice.site and units < choice.site.units:
            kept[choice.site.name] = damage.best(choice.site.name, units)
        if choice.stream and point.levels_after[i] > point.levels[i]:
            tokens[choice.stream.name] = levels[point.levels_after[i]]
    return Plan(sites.program.fingerprint, kept, tokens)


def damage_of(plan: Plan, choices: tuple[Choices, ...], damage: Damage) -> float:
    """The sum of the measured damages of a plan's cuts.

    The common scale of plans from problems in which one axis weighs more or less.
    """
    total = 0.0
    tokens: dict[object, int] = {}
    for choice in choices:
        site, stream = choice.site, choice.stream
        if choice.residual and choice.name in plan.kept:
            total += damage.removed[choice.name]
        elif site and site.name in plan.kept:
            total += damage.of_width(site.name, len(plan.kept[site.name]))
        if stream and stream.name in plan.tokens:
            before = tokens.get(stream.tokens, stream.tokens.size)
            tokens[stream.tokens] = after = plan.tokens[stream.name]
            more = damage.of_tokens(stream.name, after) - damage.of_tokens(stream.name, before)
            total += max(more, 0.0)
    return total


def _units(choice: Choices) -> tuple[int, ...]:
    return tuple(option.units for option in choice.options)


def _block(
    choice: Choices,
    levels: tuple[int, ...],
    damage: Damage,
    table: CostTable,
    factor: dict[str, float],
    coupled: bool,
) -> Block:
    """A choice's options; those of spanning sites cost nothing but in products.

    Args:
        coupled: whether its own cost is a product too.
    """
    units = _units(choice)
    select_damage = select_latency = needs = None
    if choice.stream:
        select_damage, select_latency = _selection(choice.stream, levels, damage, table, factor)
        needs = np.array([each > 0 for each in units])
    empty = np.zeros((len(units), len(levels)))
    costs = (empty, np.zeros(len(units)), empty)
    if choice.residual is not None and not coupled:
        costs = (
            np.array([[table.block_ms(choice.name, u, t) for t in levels] for u in units]),
            np.array([table.block_weight_mb(choice.name, u) for u in units]),
            np.array(
                [[table.block_activation_mb(choice.name, u, t) for t in levels] for u in units]
            ),
        )
    return Block(
        choice.name,
        tuple(option.label for option in choice.options),
        damage=np.array([_damage(choice, each, damage, factor) for each in units]),
        latency_ms=costs[0],
        weight_mb=costs[1],
        activation_mb=costs[2],
        select_damage=select_damage,
        select_latency_ms=select_latency,
        select_needs=needs,
    )


def _product(
    part: Part,
    places: Mapping[str, int],
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    table: CostTable,
) -> Product:
    """A part that spanning sites cut across: its own cost, and the share that each of them leaves.

    Args:
        places: of the choices, by name.
        levels: token counts that it may run with.
    """
    name, owner = part.name, places.get(part.name)
    units = (1,) if owner is None else _units(choices[owner])
    held, most = (
        np.array([[table.block_activation_mb(name, u, t, share) for t in levels] for u in units])
        for share in (0.0, 1.0)
    )
    spanned = zip(part.spanning, table.shares(part), strict=True)
    return Product(
        name,
        owner,
        latency_ms=np.array([[table.block_ms(name, u, t) for t in levels] for u in units]),
        weight_mb=np.array([table.block_weight_mb(name, u) for u in units]),
        held_mb=held,
        alive_mb=most - held,
        shares={
            places[site]: np.array([shares.at(u) for u in _units(choices[places[site]])])
            for site, shares in spanned
            if site in places
        },
    )


def _damage(choice: Choices, units: int, damage: Damage, factor: dict[str, float]) -> float:
    if not units:
        return factor["depth"] * damage.removed[choice.name]
    if choice.site is None:
        return 0.0
    return factor["width"] * damage.of_width(choice.site.name, units)


def _selection(
    stream: TokenStream,
    levels: tuple[int, ...],
    damage: Damage,
    table: CostTable,
    factor: dict[str, float],
) -> tuple[np.ndarray, np.ndarray]:
    """[levels, levels] of dropping from row to column: further damage, and milliseconds."""
    count = len(levels)
    harm, cost = np.zeros((count, count)), np.zeros((count, count))
    alone = [damage.of_tokens(stream.name, level) for level in levels]
    for i in range(count):
        for j in range(i + 1, count):
            harm[i, j] = factor["length"] * max(alone[j] - alone[i], 0.0)
            cost[i, j] = table.transition_ms(levels[i], levels[j])
    return harm, cost
