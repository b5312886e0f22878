"""The frame of every command: shared options, and how a command ends."""

from __future__ import annotations

import errno
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperGroup

from edgeprune import __version__, console
from edgeprune.errors import EdgepruneError

UNEXPECTED = 1
INTERRUPTED = 130
VOICE = "edgeprune.voice"


@dataclass(frozen=True)
class Outcome:
    """What a command found: ``--json`` prints the document, the exit code ends the process."""

    document: Any
    exit_code: int = 0


Command: TypeAlias = Callable[..., Outcome | None]


class Ending(TyperGroup):
    """Turns what a command raises into one message on standard error and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except EdgepruneError as error:
            console.fail(str(error))
            if error.detail and _voice(ctx)["verbose"]:
                console.fail(error.detail)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            console.fail("stopped; run the same command again to continue")
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader left, as `head` does
            _blame_ourselves(ctx, error)
            raise typer.Exit(UNEXPECTED) from error


def _blame_ourselves(ctx: typer.Context, error: Exception) -> None:
    first = next(iter(str(error).strip().splitlines()), "")
    what = f"unexpected {type(error).__name__}: {first[:300]}"
    if _voice(ctx)["verbose"]:
        console.fail(traceback.format_exc())
        console.fail(f"{what}. This is a fault of edgeprune; please report the lines above.")
    else:
        console.fail(f"{what}. This is a fault of edgeprune; run again with -v to see where.")


app = typer.Typer(
    name="edgeprune",
    cls=Ending,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(
    name: str, group: typer.Typer = app, options: Callable[..., object] | None = None
) -> Callable[[Command], Command]:
    """Decorate a function to offer it as a command that takes the shared options too.

    Args:
        name: as typed.
        group: the commands it is one of.
        options: a function whose parameters the command takes, handed on as ``**given``; None
            takes the decorated function's own.
    """

    def add(function: Command) -> Command:
        group.command(name)(spoken(function, options or function))
        return function

    return add


def spoken(function: Command, options: Callable[..., object]) -> Callable[..., None]:
    """``function`` as typer takes it, with the shared options, dealt with before it runs."""
    own = inspect.signature(options, eval_str=True).parameters
    shared = inspect.signature(_shared, eval_str=True).parameters

    @wraps(function)
    def run(ctx: typer.Context, **given: Any) -> None:
        asked = {name: given.pop(name) for name in shared}
        voice = _voice(ctx)
        voice.update({name: voice[name] or asked[name] for name in voice})
        console.configure(**voice)
        outcome = function(**given, **({"ctx": ctx} if "ctx" in own else {}))
        if outcome is None:
            return
        if voice["as_json"]:
            console.print_json(outcome.document)
        raise typer.Exit(outcome.exit_code)

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    every = {**own, **shared, "ctx": context}
    named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in every.values()]
    run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in named}
    return run


def _voice(ctx: typer.Context) -> dict[str, bool]:
    """What was asked so far, before the command's name or after it."""
    voice: dict[str, bool] = ctx.meta.setdefault(
        VOICE, {"quiet": False, "verbose": False, "as_json": False}
    )
    return voice


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"edgeprune {__version__}")
        raise typer.Exit


def _shared(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more, in full.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but failures.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Options of every command."""


def _root() -> None:
    """Prune a network for the device it must run on, and prove it there."""


app.callback()(spoken(_root, _root))


def main() -> None:
    """The ``edgeprune`` command."""
    app(prog_name="edgeprune")
