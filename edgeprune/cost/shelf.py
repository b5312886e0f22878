"""The shelf: measured tables in the cache, and how they leave it and come in as files."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

from edgeprune.cache import cache_dir
from edgeprune.cost.table import CostTable
from edgeprune.devices.measurement import DeviceState
from edgeprune.errors import InputError

# Of a table, after which a warning asks whether it still holds.
OLD_DAYS = 180
# Versions that say how files are made, not how fast they run.
OF_MAKING = {"python", "torch", "numpy"}


def shelf() -> Path:
    """The folder of the tables."""
    return cache_dir() / "tables"


def keep(table: CostTable) -> str:
    """Put a table on the shelf; its name there."""
    name = table.hash[:8]
    table.write(shelf() / f"{name}.json")
    return name


def kept() -> dict[str, CostTable]:
    """The tables on the shelf by name, the newest first; files that cannot be read left out."""
    found = {}
    for path in shelf().glob("*.json"):
        try:
            found[path.stem] = CostTable.read(path)
        except InputError:
            continue
    return dict(sorted(found.items(), key=lambda each: each[1].date, reverse=True))


def find(name: str) -> CostTable:
    """A table by its name on the shelf, or from a file.

    Raises:
        InputError: there is neither, or it cannot be read.
    """
    if (shelf() / f"{name}.json").is_file():
        return CostTable.read(shelf() / f"{name}.json")
    if not Path(name).is_file():
        known = ", ".join(kept()) or "none"
        raise InputError(
            f"table '{name}': no such file, and not on the shelf, which has: {known}. "
            "`edgeprune tables` tells of each."
        )
    return CostTable.read(name)


def age_days(table: CostTable) -> int:
    """Whole days since it was made."""
    return (datetime.now(UTC) - datetime.fromisoformat(table.date)).days


def age(table: CostTable) -> str:
    """In words."""
    days = age_days(table)
    return "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"


def described(table: CostTable) -> str:
    """One line: where, how and when it was made."""
    origin = f" from {table.source}" if table.source else ""
    return (
        f"{table.provenance}{origin} on {table.device}, {table.runtime} {table.precision}, "
        f"{table.threads} thread{'s' * (table.threads > 1)}, {age(table)}"
    )


def processor_of(state: DeviceState) -> str:
    """As a table names it; an emulated one is not the same."""
    return state.cpu_model + " (emulated)" * state.emulated


def changes(table: CostTable, state: DeviceState) -> list[str]:
    """What is otherwise on a device than where the table was made; empty if it should hold."""
    pairs = [
        ("processor", table.processor or table.device, processor_of(state)),
        ("system", table.system, state.system),
        ("threads", str(table.threads), str(state.threads)),
    ]
    for name in sorted((table.versions.keys() & state.versions.keys()) - OF_MAKING):
        pairs.append((name, table.versions[name], state.versions[name]))
    return [
        f"{what} was {then or 'unknown'}, is {now or 'unknown'}"
        for what, then, now in pairs
        if then != now
    ]


def concerns(table: CostTable) -> list[str]:
    """What speaks against a table, whatever the device."""
    found = []
    if table.provenance == "estimated":
        found.append("it was estimated from a profile: nothing was measured")
    if age_days(table) > OLD_DAYS:
        found.append(f"it was made {age(table)}")
    return found


def check_numbers(table: CostTable) -> None:
    """Refuse a file from elsewhere whose numbers cannot be costs.

    Raises:
        InputError: names the sub-layer.
    """
    for block in table.blocks:
        lines = (block.ms.by_units, block.ms.by_tokens, block.removed_ms)
        values = [value for line in lines for value in line]
        for _, value in [*values, *((size, ms) for *size, ms in block.ms.inside)]:
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(
                    f"table of {table.device}: sub-layer '{block.members[0]}' takes {value!r} ms, "
                    "wanted a number from 0. Was the file changed by hand?"
                )
