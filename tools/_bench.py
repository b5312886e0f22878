"""What every benchmark here shares: naming the machine, and printing one form of result."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeprune.versions import versions

ISA_FLAGS = (
    *("sse4_1", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni"),
    *("avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
DEFAULT_PACKAGES = ("edgeprune", "numpy", "scipy", "torch", "executorch")


def machine() -> dict[str, Any]:
    """This machine: ``cpu``, ``cores`` (usable), ``ram_gb``, ``os``, ``arch``, ``isa``."""
    cpuinfo = _cpuinfo()
    flags = set((cpuinfo.get("flags") or cpuinfo.get("features") or "").split())
    return {
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cores": _usable_cores(),
        "ram_gb": _ram_gb(),
        "os": platform.platform(terse=True),
        "arch": platform.machine(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
    }


def claim(name: str, value: float, unit: str, n: int) -> dict[str, Any]:
    """One number that the benchmark stands for, over ``n`` samples."""
    return {"name": name, "value": value, "unit": unit, "n": n}


def emit(
    title: str,
    rows: Sequence[dict[str, Any]],
    claims: Sequence[dict[str, Any]],
    as_json: bool,
    packages: Sequence[str] = DEFAULT_PACKAGES,
) -> None:
    """Print the result to standard output: a table to read, or one JSON object.

    Args:
        title: what was measured, above the table.
        rows: one dict per measured case; columns come in order of first appearance.
        claims: from ``claim``.
        as_json: print only ``{"machine", "versions", "claims", "rows"}``.
        packages: whose versions to state.
    """
    host, installed = machine(), versions(packages)
    if as_json:
        body: dict[str, Any] = {"machine": host, "versions": installed}
        body |= {"claims": list(claims), "rows": list(rows)}
        json.dump(body, sys.stdout, indent=1, default=_plain)
        sys.stdout.write("\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_table(title, rows))
    for entry in claims:
        value = _text(entry["value"])
        console.print(f"{entry['name']}: [bold]{value} {entry['unit']}[/] (n = {entry['n']})")
    console.print(f"{host['cpu']}, {host['cores']} cores, {host['ram_gb']} GB, {host['os']}")
    console.print(", ".join(f"{name} {version}" for name, version in installed.items()))


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title)
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_text(row.get(column, "")) for column in columns))
    return table


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as JSON writes them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo, keys in lower case; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ram_gb() -> float:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0.0
    return round(total / 2**30, 1)
