"""The Site noun: one place where something may be cut, or the reason why not."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any

LENGTHS = ("tokens", "resolution", "time", "points")
_KINDS = {"sublayer": "depth", "layer": "depth", "rank": "rank"} | dict.fromkeys(LENGTHS, "length")


@dataclass(frozen=True)
class Site:
    """One thing that can be cut.

    Attributes:
        name: such as ``encoder.layer.3.heads``; what a plan refers to.
        axis: width: "heads", "kv_groups", "queries_per_group", "ffn", "channels", "groups",
            "d_model", "vocabulary", "units"; depth: "sublayer", "layer"; length: "tokens",
            "resolution", "time", "points"; "rank".
        units: how many there are; 1 for depth, the full size for length, for a rank the smaller
            side of the matrix.
        why_not: why it cannot be cut; None when it can.
        inexact: why the cut model differs from the masked one; None when it equals it to rounding.
        opt_in: what a cut changes for whoever uses the model; such a site is cut only when a plan
            names it, never by a solver. None for all others.
        parameters: weights that leave with all units.
        weights: path of each weight and buffer that is cut -> which of its dimensions.
        pinned: tokens that always stay, as positions (-1 is the last one).
        step: of a size of the inputs, the distance to the next smaller one that is possible.
    """

    name: str
    axis: str
    units: int
    why_not: str | None = None
    inexact: str | None = None
    opt_in: str | None = None
    parameters: int = 0
    weights: tuple[tuple[str, int], ...] = ()
    pinned: tuple[int, ...] = ()
    step: int = 1

    @property
    def exact(self) -> bool:
        """Whether the cut model equals the masked one to rounding."""
        return self.inexact is None

    @property
    def kind(self) -> str:
        """The family of its axis: "width", "depth", "length" or "rank"."""
        return _KINDS.get(self.axis, "width")

    def to_json(self) -> dict[str, Any]:
        """As stored in ``sites.json``."""
        return asdict(self)


def unique_name(base: str, taken: Container[str]) -> str:
    """``base``, or with the first number behind it that makes it no other's."""
    name, number = base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
