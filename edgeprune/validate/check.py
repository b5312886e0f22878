"""One thing that was checked, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """A comparison.

    Attributes:
        name: what was compared; its unit stands in it.
        passed: None if it could not be checked, or nothing was asked.
        got, wanted: the numbers; None where there is none.
        note: what the numbers are.
    """

    name: str
    passed: bool | None
    got: float | None
    wanted: float | None
    note: str

    def __str__(self) -> str:
        got, wanted = (
            "nothing" if number is None else f"{number:.6g}" for number in (self.got, self.wanted)
        )
        return f"{self.name}: got {got}, wanted {wanted} ({self.note})"


def bound_check(name: str, got: float | None, bound: float | None, note: str) -> Check:
    """``got`` against an upper bound; passed is None if either is unknown."""
    passed = None if got is None or bound is None else got <= bound
    return Check(name, passed, got, bound, note if bound is not None else f"{note}; no bound")
