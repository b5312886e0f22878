"""Who runs each operator of a lowered program, and why the delegate refused the rest."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from edgeprune import files

FALLBACK = "fallback"
ON_CPU = ("cpu", FALLBACK)


@dataclass(frozen=True)
class DelegationRow:
    """One operator of the final program.

    Attributes:
        node: its name in the lowered graph.
        op: the operator, as in ``aten.linear.default``.
        delegate: ``xnnpack``, ``edgeprune`` (ours), an accelerator's name, or ``cpu`` for the
            runtime's own kernels; ``fallback`` for those too, where the accelerator runs
            operators of this kind and yet not this one.
        region: number of the delegate call it is part of; empty on the CPU.
        why_not: why the delegate does not run it; empty if it does.
        assumed_ms: of an operator beside an accelerator, what it is priced at, by assumption.
    """

    node: str
    op: str
    delegate: str
    region: str
    why_not: str
    assumed_ms: str = ""

    @property
    def delegated(self) -> bool:
        """Whether a delegate runs it."""
        return self.delegate not in ON_CPU


def write_delegation(path: str | os.PathLike[str], rows: Iterable[DelegationRow]) -> Path:
    """Write ``delegation.csv``: a header, then one line per operator in order of execution."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(DelegationRow))
    writer.writerows(astuple(row) for row in rows)
    return files.write_text(path, text.getvalue())
