"""``edgeprune tables``: measured cost tables, shared as files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgeprune import console
from edgeprune.cli.app import Outcome, app, command, spoken

if TYPE_CHECKING:
    from edgeprune.cost import CostTable
    from edgeprune.devices import DeviceState

log = logging.getLogger(__name__)

tables = typer.Typer(invoke_without_command=True)


def list_default(ctx: typer.Context) -> Outcome | None:
    """List the cost tables measured here or imported; `export` and `import` share them."""
    return None if ctx.invoked_subcommand else list_all()


tables.callback()(spoken(list_default, list_default))
app.add_typer(tables, name="tables")


@command("list", group=tables)
def list_all() -> Outcome:
    """List the cost tables measured here or imported, the newest first."""
    from edgeprune.cost import shelf

    found = shelf.kept()
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("table", "model", "device", "made", "lowered", "threads", "dense", "error"):
        shown.add_column(title, no_wrap=title in ("table", "model", "dense", "error"))
    for name, table in found.items():
        shown.add_row(
            name,
            _model(table),
            table.device,
            f"{table.provenance} {shelf.age(table)}",
            f"{table.runtime} {table.precision}",
            str(table.threads),
            f"{table.dense_ms:.2f} ms",
            f"{_error_pct(table):.1f}%",
        )
    console.say(shown if found else "no tables yet: `edgeprune build` measures one on its device")
    return Outcome({"tables": [_document(name, table) for name, table in found.items()]})


@command("export", group=tables)
def export(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="Of `edgeprune tables`.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to write, as pixel8.json.")],
) -> Outcome:
    """Write a table to one file, with its samples and where it is from, to be shared."""
    from edgeprune.cost import shelf

    table = shelf.find(name)
    table.write(file)
    console.say(f"{file}: {shelf.described(table)}")
    return Outcome(_document(name, table) | {"file": str(file)})


@command("import", group=tables)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `export` wrote.")],
    device: Annotated[
        str | None, typer.Option(help="Compare with this one; by default with what is here.")
    ] = None,
) -> Outcome:
    """Check a table from elsewhere and keep it for `edgeprune build --table`."""
    from edgeprune.cost import CostTable, shelf

    table = CostTable.read(file)
    shelf.check_numbers(table)
    state = _state(table, device)
    warnings = [*shelf.concerns(table), *(shelf.changes(table, state) if state else ())]
    name = shelf.keep(table)
    console.say(f"{name}: {shelf.described(table)}")
    for warning in warnings:
        log.warning("%s: %s", file.name, warning)
    if warnings:
        console.say("a build with --table on another device or version rescales it there")
    console.say(f"use it: edgeprune build --table {name} …")
    return Outcome(_document(name, table) | {"warnings": warnings})


def _state(table: CostTable, device: str | None) -> DeviceState | None:
    """Of the device to compare with: the one named, or this machine for a machine's own table."""
    from edgeprune.devices import connect

    if device is None and not table.device.startswith("local:"):
        return None
    with connect(device or "local", threads=table.threads) as opened:
        return opened.state()


def _model(table: CostTable) -> str:
    """Its first kinds of sub-layers, and how many there are of each."""
    return "\n".join(f"{len(block.members)} x {block.members[0]}" for block in table.blocks[:2])


def _error_pct(table: CostTable) -> float:
    """Of whole models: those it was rescaled by, or those it was fitted to."""
    errors = table.error_pct
    return errors.get("rescaled_worst", errors.get("anchors_worst", float("nan")))


def _document(name: str, table: CostTable) -> dict[str, Any]:
    from edgeprune.cost import shelf

    said = ("device", "system", "runtime", "delegate", "precision", "threads", "date", "dense_ms",
            "provenance", "source", "versions", "error_pct", "program")  # fmt: skip
    return {"name": name, "age_days": shelf.age_days(table)} | {
        key: getattr(table, key) for key in said
    }
