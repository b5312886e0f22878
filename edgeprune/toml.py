"""Strict reading of the TOML that people write: every complaint names the file and the line."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from edgeprune.errors import InputError

KeyPath = tuple[str | int, ...]
"""Where a value stands: ``("clusters", 0, "clock_ghz")``."""


@dataclass(frozen=True)
class Table:
    """One table of a TOML file, read key by key; each getter checks the type.

    Every getter raises InputError, naming file and line, when the key is missing or its value is
    not what the getter reads.
    """

    file: Path
    values: Mapping[str, Any]
    path: KeyPath
    lines: Mapping[KeyPath, int]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def only(self, known: Iterable[str]) -> Table:
        """Refuse keys that are not ``known``, with the nearest known one; returns the table."""
        known = tuple(known)
        for key in self.values:
            if key not in known:
                raise self.error(
                    key, f"unknown key{near(key, known)} Known keys: {', '.join(known)}."
                )
        return self

    def text(self, key: str, among: Iterable[str] | None = None) -> str:
        """A string that is not empty; one of ``among`` if given."""
        value = self._checked(key, "a string", lambda got: isinstance(got, str) and got != "")
        if among is not None and value not in (choices := tuple(among)):
            listed = ", ".join(f'"{choice}"' for choice in choices)
            raise self.error(key, f'got "{value}", wanted one of {listed}.{near(value, choices)}')
        return str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        wanted = "a list of strings"
        value = self._checked(
            key,
            wanted,
            lambda got: isinstance(got, list) and all(isinstance(item, str) for item in got),
        )
        return tuple(value)

    def flag(self, key: str) -> bool:
        """``true`` or ``false``."""
        return bool(self._checked(key, "true or false", lambda got: isinstance(got, bool)))

    def whole(self, key: str, least: int) -> int:
        """A whole number, at least ``least``."""
        wanted = f"a whole number from {least}"
        return int(self._checked(key, wanted, lambda got: type(got) is int and got >= least))

    def number(self, key: str, or_zero: bool = False) -> float:
        """A finite number above zero, or zero too."""
        wanted = "a number, 0 or above" if or_zero else "a number above 0"
        return float(
            self._checked(
                key, wanted, lambda got: _is_number(got) and (got > 0 or (or_zero and got == 0))
            )
        )

    def table(self, key: str) -> Table:
        """A table, be it ``[key]`` or inline."""
        value = self._checked(key, "a table", lambda got: isinstance(got, dict))
        return Table(self.file, value, (*self.path, key), self.lines)

    def tables(self, key: str) -> tuple[Table, ...]:
        """A list of at least one table, as in ``[[key]]``."""
        value = self._checked(
            key,
            f"at least one [[{key}]] table",
            lambda got: isinstance(got, list) and got and all(isinstance(one, dict) for one in got),
        )
        return tuple(
            Table(self.file, one, (*self.path, key, index), self.lines)
            for index, one in enumerate(value)
        )

    def error(self, key: str | None, problem: str) -> InputError:
        """The exception that blames ``key`` (None: the table itself) for ``problem``."""
        path = self.path if key is None else (*self.path, key)
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        named = f" '{_written(path)}':" if path else ""
        return InputError(f"{self.file}, line {line}:{named} {problem}")

    def _checked(self, key: str, wanted: str, is_right: Callable[[Any], object]) -> Any:
        if key not in self.values:
            raise self.error(key, f"missing; wanted {wanted}.")
        value = self.values[key]
        if not is_right(value):
            raise self.error(key, f"got {_shown(value)}, wanted {wanted}.")
        return value


def toml_value(value: object) -> str:
    """A number, truth value or text as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: str | Path) -> Table:
    """Read a TOML file into its top table.

    Raises:
        InputError: the file cannot be read or is not TOML; the message has tomli's line.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error}).") from error
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise InputError(
            f"{file}, line {error.lineno}, column {error.colno}: not TOML: {error.msg}."
        ) from error
    return Table(file, values, (), key_lines(text))


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line (from 1) at which each key, table and list item of a valid TOML text begins."""
    scan = _Scan(_tokens(text))
    while (token := scan.peek()) is not None:
        if token.text == "\n":
            scan.next()
        elif token.text == "[":
            scan.header()
        else:
            scan.pair(scan.current)
    return scan.lines


def near(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest known word, or ``"."`` when none is close."""
    close = difflib.get_close_matches(word.lower().replace("-", "_"), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else "."


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _written(path: KeyPath) -> str:
    """``("clusters", 0, "name")`` -> ``clusters[0].name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class _Token:
    text: str
    line: int


_TOKEN = re.compile(
    r"""
      (?P<skip> [ \t\r]+ | \#[^\n]* )
    | \"{3}(?:\\.|[^\\])*?\"{3,5}
    | '{3}.*?'{3,5}
    | "(?:\\.|[^"\\\n])*"
    | '[^'\n]*'
    | [\n\[\]{},=.]
    | [^\s\[\]{},=.\#"']+
    """,
    re.VERBOSE | re.DOTALL,
)


def _tokens(text: str) -> list[_Token]:
    tokens, line = [], 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "skip":
            tokens.append(_Token(match.group(), line))
        line += match.group().count("\n")
    return tokens


@dataclass
class _Scan:
    """A walk over the tokens of a text that tomli has already accepted."""

    tokens: list[_Token]
    at: int = 0
    current: KeyPath = ()
    lines: dict[KeyPath, int] = field(default_factory=dict)
    lengths: dict[KeyPath, int] = field(default_factory=dict)

    def peek(self) -> _Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def next(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def header(self) -> None:
        """``[a.b]`` or ``[[a.b]]``: what follows belongs to that table."""
        line = self.next().line
        is_list = self.tokens[self.at].text == "["
        self.at += is_list
        *outer, last = self.keys("]")
        self.at += is_list
        path: KeyPath = ()
        for key in outer:
            path = self._latest((*path, key), line)
        path = (*path, last)
        if is_list:
            self.lines.setdefault(path, line)
            index = self.lengths.get(path, 0)
            self.lengths[path] = index + 1
            path = (*path, index)
        self.lines.setdefault(path, line)
        self.current = path

    def pair(self, table: KeyPath) -> None:
        """``key.key = value``."""
        line = self.tokens[self.at].line
        path = table
        for key in self.keys("="):
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.value(path)

    def keys(self, end: str) -> list[str]:
        keys = []
        while (token := self.next()).text != end:
            if token.text != ".":
                keys.append(_unquoted(token.text))
        return keys

    def value(self, path: KeyPath) -> None:
        opening = self.next().text
        if opening == "[":
            self._items(path)
        elif opening == "{":
            self._pairs(path)
        else:
            while (token := self.peek()) is not None and token.text not in ("\n", ",", "]", "}"):
                self.next()

    def _items(self, path: KeyPath) -> None:
        index = 0
        while (token := self.tokens[self.at]).text != "]":
            if token.text in ("\n", ","):
                self.next()
                continue
            self.lines[(*path, index)] = token.line
            self.value((*path, index))
            index += 1
        self.next()

    def _pairs(self, path: KeyPath) -> None:
        while (token := self.tokens[self.at]).text != "}":
            if token.text in ("\n", ","):
                self.next()
            else:
                self.pair(path)
        self.next()

    def _latest(self, path: KeyPath, line: int) -> KeyPath:
        """The newest item if ``path`` is a list of tables, else ``path`` itself."""
        self.lines.setdefault(path, line)
        return (*path, self.lengths[path] - 1) if path in self.lengths else path


def _unquoted(token: str) -> str:
    if token[0] not in "\"'":
        return token
    return str(tomli.loads(f"key = {token}")["key"])
