"""The CostTable noun: milliseconds and megabytes of a model's pieces on one device."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune import files
from edgeprune.cost.blocks import units_kept
from edgeprune.errors import InputError
from edgeprune.plan import Plan
from edgeprune.sites import Sites
from edgeprune.sites.parts import Part, spanning_sites, width_sites

FloatArray = npt.NDArray[np.float64]
Line = tuple[tuple[float, float], ...]
"""(size, value) pairs, sizes ascending."""

MB = 2**20


@dataclass(frozen=True)
class Prediction:
    """What a plan is predicted to cost."""

    latency_ms: float
    peak_memory_mb: float
    size_mb: float


@dataclass(frozen=True)
class Grid:
    """A quantity over units × tokens, exact at its samples.

    Sampled along units at all tokens and along tokens at all units; in between the two lines are
    multiplied, and corrected by what coarse samples inside say.

    Attributes:
        by_units: at all tokens.
        by_tokens: at all units.
        inside: (units, tokens, value) at smaller sizes.
    """

    by_units: Line
    by_tokens: Line
    inside: tuple[tuple[float, float, float], ...] = ()

    def at(self, units: float, tokens: float) -> float:
        """The value at a size; between samples interpolated, beyond them extrapolated."""
        full = self.by_units[-1][1]
        if not full:
            return 0.0
        separate = line_at(self.by_units, units) * line_at(self.by_tokens, tokens) / full
        return max(separate * self._correction(units, tokens), 0.0)

    def _correction(self, units: float, tokens: float) -> float:
        """What the samples inside say about the product of the two lines."""
        sizes, lines = self._corrections
        if not sizes:
            return 1.0
        across = [line_at(line, tokens, clamp=True) for line in lines]
        return line_at(tuple(zip(sizes, across, strict=True)), units, clamp=True)

    @cached_property
    def _corrections(self) -> tuple[list[float], list[Line]]:
        """Per sampled number of units: the correction over tokens; 1 along both full lines."""
        full = self.by_units[-1][1]
        rows: dict[float, list[tuple[float, float]]] = {}
        for units, tokens, value in self.inside:
            product = line_at(self.by_units, units) * line_at(self.by_tokens, tokens) / full
            rows.setdefault(units, []).append((tokens, value / product if product else 1.0))
        last_tokens, last_units = self.by_tokens[-1][0], self.by_units[-1][0]
        lines = {units: (*sorted(row), (last_tokens, 1.0)) for units, row in rows.items()}
        if lines:
            lines[last_units] = ((last_tokens, 1.0),)
        sizes = sorted(lines)
        return sizes, [lines[size] for size in sizes]


@dataclass(frozen=True)
class Shares:
    """What is left of a block, as shares over the units kept of one site that spans it."""

    ms: Line
    activation_mb: Line
    weight_mb: Line

    def at(self, units: float) -> FloatArray:
        """[3]: the shares of milliseconds, of activations and of weights, each 0 to 1."""
        lines = (self.ms, self.activation_mb, self.weight_mb)
        return np.clip([line_at(line, units) for line in lines], 0.0, 1.0)


@dataclass(frozen=True)
class BlockCost:
    """What one kind of part costs: a sub-layer, or a chunk outside of all.

    Attributes:
        members: names of the parts it holds for.
        ms: latency of one of them.
        removed_ms: over tokens, of what stays of it when it is removed (its closing norms).
        activation_mb: memory while it runs.
        weight_mb, removed_weight_mb: in the file, at all units and when removed.
        fixed_weight_mb: of ``weight_mb``, the part that no unit carries.
        spanned: one per site that spans it, in the order of ``Part.spanning``; all multiply.
    """

    members: tuple[str, ...]
    ms: Grid
    removed_ms: Line
    activation_mb: Grid
    weight_mb: float
    fixed_weight_mb: float
    removed_weight_mb: float
    spanned: tuple[Shares, ...] = ()

    @property
    def units(self) -> float:
        """All of its units."""
        return self.ms.by_units[-1][0]

    @property
    def tokens(self) -> float:
        """All tokens."""
        return self.ms.by_tokens[-1][0]


@dataclass(frozen=True)
class Transition:
    """Milliseconds of selecting tokens: a polynomial in shares of ``tokens``, all factors >= 0.

    Attributes:
        tokens: on the uncut stream.
        factors: of 1, in, in², in·keep and keep.
    """

    tokens: int
    factors: tuple[float, float, float, float, float]

    def at(self, tokens_in: int, keep: int) -> float:
        """Selecting ``keep`` of ``tokens_in``; 0 where nothing is dropped."""
        if keep >= tokens_in:
            return 0.0
        terms = transition_terms(self.tokens, tokens_in, keep)
        return sum(f * t for f, t in zip(self.factors, terms, strict=True))


@dataclass(frozen=True)
class CostTable:
    """Predicts what a plan costs on one device, runtime, delegate and precision.

    Attributes:
        device: its kind and processor, as in "local: AMD EPYC 9B14"; a profile's name in an
            estimate.
        versions: of what ran.
        date: when it was made, ISO 8601.
        program: fingerprint of the model.
        provenance: "measured", "rescaled" from another device's, or "estimated" from a profile.
        dense_ms: the uncut model.
        blocks: one per kind of part: sub-layers, then chunks outside of them.
        scale: whole models over the sum of their pieces.
        fixed_ms: of all that is no block: embedding, head.
        fixed_weight_mb: in the file, of all that is no block.
        fixed_activation_mb: memory beside the file, whatever runs.
        selection_mb: on top of it in blocks that run with fewer tokens than the dense model's.
        unread_mb: of the file, what never comes into memory: LiteRT maps it, and reads few rows of
            an embedding.
        resident: memory per MB of the rest of the file; LiteRT holds mapped and packed weights.
        error_pct: ``between_samples``: how far interpolation may put a plan off (two standard
            deviations), relative to the dense model; ``left_out_mean`` and ``_worst``: of
            interpolating samples that were left out, relative to the whole block;
            ``anchors_mean`` and ``_worst``: of the whole models that ``scale`` and ``fixed_ms``
            were fitted to; ``rescaled_mean`` and ``_worst``: of whole models on the device that
            it was rescaled to, each left out.
        samples: raw measurements, by what was measured.
        system: the device's operating system; empty in an estimate.
        source: whose table was rescaled, and when that was made; empty in others.
    """

    device: str
    runtime: str
    delegate: str
    versions: dict[str, str]
    precision: str
    threads: int
    date: str
    program: str
    provenance: str
    dense_ms: float
    blocks: tuple[BlockCost, ...]
    transition: Transition | None
    scale: float
    fixed_ms: float
    fixed_weight_mb: float
    fixed_activation_mb: float
    selection_mb: float
    unread_mb: float = 0.0
    resident: float = 1.0
    error_pct: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    system: str = ""
    source: str = ""

    @property
    def processor(self) -> str:
        """Without the kind of the device."""
        return self.device.partition(": ")[2]

    def block_ms(self, residual: str, units: float, tokens: int) -> float:
        """A sub-layer with ``units`` of its main site at ``tokens`` tokens; 0 units: removed.

        Where several sites multiply (kv groups × queries per group), ``units`` are those of the
        main one with the same work; they need not be whole.

        Raises:
            InputError: the model has no such sub-layer.
        """
        block = self._block(residual)
        if not units:
            return self.scale * max(line_at(block.removed_ms, tokens), 0.0)
        return self.scale * block.ms.at(units, tokens)

    def transition_ms(self, tokens_in: int, keep: int) -> float:
        """Selecting ``keep`` of ``tokens_in`` tokens after an attention."""
        return self.scale * self.transition.at(tokens_in, keep) if self.transition else 0.0

    def block_weight_mb(self, residual: str, units: float) -> float:
        """Bytes of the file that belong to a sub-layer, in MB."""
        block = self._block(residual)
        if not units:
            return block.removed_weight_mb
        share = units / block.units
        return block.fixed_weight_mb + share * (block.weight_mb - block.fixed_weight_mb)

    def block_activation_mb(
        self, residual: str, units: float, tokens: int, share: float = 1.0
    ) -> float:
        """Memory beside the file while a part runs; ``share`` of its tensors is left."""
        block = self._block(residual)
        selected = self.selection_mb if tokens < block.tokens else 0.0
        alive = share * block.activation_mb.at(units, tokens) if units else 0.0
        return self.fixed_activation_mb + selected + alive

    def shares(self, part: Part) -> tuple[Shares, ...]:
        """What each of the sites in ``part.spanning`` leaves of it."""
        return self._block(part.name).spanned

    def spanned(self, part: Part, plan: Plan) -> FloatArray:
        """[3]: of milliseconds, activations and weights, what the sites that span a part leave."""
        found = np.ones(3)
        for name, shares in zip(part.spanning, self.shares(part), strict=True):
            if name in plan.kept:
                found *= shares.at(len(plan.kept[name]))
        return found

    def predict(self, sites: Sites, plan: Plan) -> Prediction:
        """Price a whole plan.

        Raises:
            InputError: it cuts a width that belongs to no part.
        """
        _check_priced(plan, sites)
        latency, weight = self.fixed_ms, self.fixed_weight_mb
        activation = self.fixed_activation_mb
        for part, units, tokens, keep in walk(plan, sites):
            ms, mb, stored = self.spanned(part, plan)
            if part.residual is None or part.residual.layer not in plan.kept:
                latency += ms * self.block_ms(part.name, units, tokens)
                weight += stored * self.block_weight_mb(part.name, units)
            latency += self.transition_ms(tokens, keep)
            here = self.block_activation_mb(part.name, units, tokens, mb)
            activation = max(activation, here)
        memory = self.resident * max(weight + activation - self.unread_mb, 0.0)
        return Prediction(float(latency), float(memory), float(weight))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write ``table.json``."""
        return files.write_json(path, "table", self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As stored in ``table.json``."""
        return asdict(self)

    @property
    def hash(self) -> str:
        """Identifies what the table says."""
        return files.content_hash(self.to_json() | {"date": ""})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> CostTable:
        """Read a ``table.json``.

        Raises:
            InputError: missing, malformed, or from a future version.
        """
        body = files.read_json(path, "table")
        return cls.from_json(body, path)

    @classmethod
    def from_json(cls, body: dict[str, Any], path: str | os.PathLike[str] = "table") -> CostTable:
        """Read what :meth:`to_json` gave; ``path`` is named in messages.

        Raises:
            InputError: it is malformed.
        """
        try:
            body = {
                key: body[key] if kind.default is MISSING else body.get(key, kind.default)
                for key, kind in cls.__dataclass_fields__.items()
            }
            blocks = tuple(_read_block(block) for block in body["blocks"])
            moved = body["transition"]
            transition = moved and Transition(moved["tokens"], tuple(moved["factors"]))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}: not a complete table ({error} is missing or wrong)"
            ) from error
        return cls(**body | {"blocks": blocks, "transition": transition})

    def _block(self, residual: str) -> BlockCost:
        block = self._by_name.get(residual)
        if block is None:
            raise InputError(
                f"cost table: has no sub-layer '{residual}'. Was it made for another model?"
            )
        return block

    @cached_property
    def _by_name(self) -> dict[str, BlockCost]:
        return {name: block for block in self.blocks for name in block.members}


def walk(plan: Plan, sites: Sites) -> list[tuple[Part, float, int, int]]:
    """(part, units of its main site, tokens it runs with, tokens it hands on), in order."""
    steps = []
    left: dict[object, int] = {}
    streams = {stream.residual.name: stream for stream in sites.streams}
    for part in sites.parts:
        if part.residual is None:
            steps.append((part, 1.0, 1, 1))
            continue
        dims = sites.flow.of(part.residual.add)
        dim = dims[1].root if len(dims) == 3 else None
        tokens = left.get(dim, dim.size if dim else 1)
        stream = streams.get(part.name)
        keep = min(tokens, plan.tokens.get(stream.name, tokens)) if stream else tokens
        steps.append((part, units_kept(sites, part.residual, plan), tokens, keep))
        left[dim] = keep
    return steps


def transition_terms(tokens: int, tokens_in: int, keep: int) -> tuple[float, ...]:
    """What ``Transition.factors`` multiply."""
    before, after = tokens_in / tokens, keep / tokens
    return (1.0, before, before * before, before * after, after)


def line_at(line: Sequence[tuple[float, float]], x: float, clamp: bool = False) -> float:
    """The piecewise linear function through the points; beyond them straight on, or constant."""
    if len(line) == 1:
        return line[0][1]
    if clamp and not line[0][0] < x < line[-1][0]:
        return line[0][1] if x <= line[0][0] else line[-1][1]
    place = min(max(bisect_right(line, (x, float("inf"))) - 1, 0), len(line) - 2)
    (x0, y0), (x1, y1) = line[place], line[place + 1]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _check_priced(plan: Plan, sites: Sites) -> None:
    priced = {site.name for each in sites.residuals for site in width_sites(sites, each)}
    priced |= {site.name for site in spanning_sites(sites)}
    for name in plan.kept:
        if sites.get(name).kind == "width" and name not in priced:
            raise InputError(
                f"cost table: a cut of '{name}' has no price. Leave it out of the plan."
            )


def _read_block(body: dict[str, Any]) -> BlockCost:
    grids = {name: _read_grid(body[name]) for name in ("ms", "activation_mb")}
    lines = {"removed_ms": _pairs(body["removed_ms"]), "members": tuple(body["members"])}
    spanned = tuple(
        Shares(**{name: _pairs(line) for name, line in shares.items()})
        for shares in body.get("spanned", ())
    )
    return BlockCost(**body | grids | lines | {"spanned": spanned})


def _read_grid(body: dict[str, Any]) -> Grid:
    inside = tuple((u, t, value) for u, t, value in body["inside"])
    return Grid(_pairs(body["by_units"]), _pairs(body["by_tokens"]), inside)


def _pairs(body: Sequence[Sequence[float]]) -> Line:
    return tuple((x, y) for x, y in body)
