"""``edgeprune.toml``: the flags of ``edgeprune build``, written down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune.budget import Budget
from edgeprune.errors import InputError
from edgeprune.files import check_version
from edgeprune.profile import DELEGATES, PRECISIONS, RUNTIMES
from edgeprune.toml import Table, read_toml

FILE_NAME = "edgeprune.toml"
# In the build folder: what was used. As edgeprune.toml it repeats the build.
RESOLVED = "resolved.toml"


def load_config(path: str | Path) -> dict[str, Any]:
    """Read the build flags in a file; only keys that it sets are in the answer.

    Values have the type of the flag: text, whole numbers, minutes as a float. The budget may be
    written as on the command line or as a table, and comes back as on the command line.

    Raises:
        InputError: unreadable, malformed, an unknown key or a wrong value; the line is named.
    """
    table = read_toml(path)
    if "version" in table:
        check_version(table.file, table.values["version"])
    table.only((*_READERS, "version"))
    return {key: read(table, key) for key, read in _READERS.items() if key in table}


def _budget(table: Table, key: str) -> str:
    value = table.values[key]
    written = value if isinstance(value, dict) else table.text(key)
    try:
        return str(
            Budget.from_table(written) if isinstance(written, dict) else Budget.parse(written)
        )
    except InputError as error:
        raise table.error(key, str(error)) from error


_READERS: dict[str, Callable[[Table, str], Any]] = {
    "profile": Table.text,
    "task": Table.text,
    "model": Table.text,
    "calibration": Table.text,
    "budget": _budget,
    "out": Table.text,
    "precision": lambda table, key: table.text(key, among=PRECISIONS),
    "runtime": lambda table, key: table.text(key, among=RUNTIMES),
    "delegate": lambda table, key: table.text(key, among=DELEGATES),
    "accelerator": Table.text,
    "threads": lambda table, key: table.whole(key, least=1),
    "seed": lambda table, key: table.whole(key, least=0),
    "recover_minutes": lambda table, key: table.number(key, or_zero=True),
    "recover_steps": lambda table, key: table.whole(key, least=1),
    "device": Table.text,
    "cluster": Table.text,
    "table": Table.text,
    "criterion": Table.text,
    "solver": Table.text,
}
