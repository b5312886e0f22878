"""The voice: what a person reads while edgeprune works, and where it goes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
"""``advance(n=1, note="")``: ``n`` more units are done; ``note`` is shown beside the bar."""

PLAIN_INTERVAL_S = 20.0
"""Where no bar can be drawn (a pipe, a log file), one line is written this often at most."""


@dataclass(frozen=True)
class _Voice:
    quiet: bool = False
    as_json: bool = False


_stdout = Console(highlight=False)
_stderr = Console(highlight=False, stderr=True)
_voice = _Voice()


def configure(quiet: bool = False, verbose: bool = False, as_json: bool = False) -> None:
    """Choose how much is said and where.

    Args:
        quiet: no progress, no chatter; errors are still logged.
        verbose: debug logging, with tracebacks.
        as_json: standard output carries JSON only; everything for people goes to standard error.
    """
    global _voice
    _voice = _Voice(quiet, as_json)
    handler = RichHandler(
        console=_stderr, show_path=verbose, show_time=verbose, rich_tracebacks=verbose
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logger = logging.getLogger("edgeprune")
    logger.handlers = [handler]
    logger.setLevel(level)


def human() -> Console:
    """The rich console that people read: standard output, or standard error under ``--json``."""
    return _stderr if _voice.as_json else _stdout


def say(text: RenderableType) -> None:
    """Show a line (printed as it is: no markup) or any rich renderable; silent under --quiet."""
    if not _voice.quiet:
        _show(human(), text)


def fail(text: str) -> None:
    """Tell standard error why edgeprune stops; said under ``--quiet`` too."""
    _show(_stderr, text)


def stage(i: int, n: int, name: str) -> None:
    """Announce stage ``i`` of ``n``."""
    if not _voice.quiet:
        human().print(f"[bold cyan]stage {i}/{n}[/] {name}", soft_wrap=True)


def print_json(document: Any) -> None:
    """Write one JSON document to standard output, under every setting."""
    _stdout.file.write(json.dumps(document, indent=1) + "\n")
    _stdout.file.flush()


@contextmanager
def progress(description: str, total: int | None, unit: str = "") -> Iterator[Advance]:
    """Show how far a long piece of work is; yields ``advance(n=1, note="")``.

    Silent under ``--quiet`` and ``--json``. Where standard output is no terminal, a plain line
    appears every ``PLAIN_INTERVAL_S`` seconds and at the end.

    Args:
        description: what is being done, a few words.
        total: how many units there are, or None when nobody knows.
        unit: what is counted, as in "plans".
    """
    if _voice.quiet or _voice.as_json:
        yield lambda n=1, note="": None
    elif human().is_terminal:
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        with _lines(description, total, unit) as advance:
            yield advance


@contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False, style="dim"),
    )
    done = 0
    with Progress(*columns, console=human()) as bars:
        count = _count(0, total, unit)
        task = bars.add_task(description, total=total, count=count, note="")

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal done
            done += n
            bars.update(task, completed=done, count=_count(done, total, unit), note=note)

        yield advance


@contextmanager
def _lines(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    done, last_note = 0, ""
    started = written = time.monotonic()

    def write() -> None:
        seconds = time.monotonic() - started
        left = f"{seconds * (total - done) / done:.0f} s left" if total and 0 < done < total else ""
        spent = f"{seconds:.0f} s"
        parts = (f"{description}: {_count(done, total, unit)}", spent, left, last_note)
        say(" · ".join(part for part in parts if part))

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last_note, written
        done, last_note = done + n, note
        if time.monotonic() - written >= PLAIN_INTERVAL_S:
            write()
            written = time.monotonic()

    yield advance
    write()


def _count(done: int, total: int | None, unit: str) -> str:
    return f"{done}{'' if total is None else f'/{total}'} {unit}".rstrip()


def _show(console: Console, text: RenderableType) -> None:
    if isinstance(text, str):
        console.print(text, markup=False, soft_wrap=True)
    else:
        console.print(text)
