"""A page of sections without scripts, in the report's style: opens from a file, asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files as resources
from string import Template


def sheet(
    title: str,
    headline: str,
    lines: Iterable[str],
    sections: Sequence[tuple[str, str, str]],
    badge: tuple[str, str] | None = None,
) -> str:
    """The page as HTML.

    Args:
        title: whose page it is.
        headline: the answer, in one sentence.
        lines: what else is said on top, plain text.
        sections: (heading, introduction, HTML) of each; heading and introduction are plain text.
        badge: (style of ``page.css``, words) of a verdict beside the title.
    """
    mark = f'<span class="badge {badge[0]}">{escape(badge[1])}</span>' if badge else ""
    return _file("sheet.html").substitute(
        css=_file("page.css").template,
        title=escape(title),
        badge=mark,
        headline=escape(headline),
        lines="".join(f"<p>{escape(line)}</p>" for line in lines),
        sections="".join(map(_section, sections)),
    )


def _section(parts: tuple[str, str, str]) -> str:
    heading, introduction, body = parts
    said = f"<p>{escape(introduction)}</p>" if introduction else ""
    return f"<section><h2>{escape(heading)}</h2>{said}{body}</section>"


def _file(name: str) -> Template:
    return Template(resources(__package__).joinpath(name).read_text("utf-8"))
