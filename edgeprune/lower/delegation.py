"""Who runs each operator of a lowered program, and why XNNPACK refused the rest."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from edgeprune import files


@dataclass(frozen=True)
class DelegationRow:
    """One operator of the final program.

    Attributes:
        node: its name in the lowered graph.
        op: the operator, as in ``aten.linear.default``.
        delegate: ``xnnpack``, ``edgeprune`` (ours), or ``cpu`` for the runtime's own kernels.
        region: number of the delegate call it is part of; empty on the CPU.
        why_not: why the delegate does not run it; empty if it does.
    """

    node: str
    op: str
    delegate: str
    region: str
    why_not: str


def write_delegation(path: str | os.PathLike[str], rows: Iterable[DelegationRow]) -> Path:
    """Write ``delegation.csv``: a header, then one line per operator in order of execution."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(DelegationRow))
    writer.writerows(astuple(row) for row in rows)
    return files.write_text(path, text.getvalue())
