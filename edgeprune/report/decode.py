"""From JSON back to frozen dataclasses, by their own annotations; strict."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgeprune.errors import InputError


def decode(wanted: Any, value: Any, where: str) -> Any:
    """``value``, as ``json.loads`` gives it, as the type ``wanted``.

    Args:
        wanted: a dataclass, str, int, float, bool, None, or a union, Literal, tuple or
            dict[str, ...] of such.
        where: how messages name the value.

    Raises:
        InputError: a field is missing, unknown or of another type; it is named.
    """
    origin, inner = get_origin(wanted), get_args(wanted)
    if is_dataclass(wanted):
        return _dataclass(wanted, value, where)
    if origin in (Union, types.UnionType):
        return _optional(inner, value, where)
    if origin is Literal:
        return _checked(value in inner, value, f"one of {', '.join(inner)}", where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin is dict:
        _checked(isinstance(value, dict), value, "an object", where)
        return {key: decode(inner[1], each, f"{where}.{key}") for key, each in value.items()}
    if wanted is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_checked(number, value, "a number", where))
    exact = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
    return _checked(exact, value, wanted.__name__, where)


def _dataclass(wanted: Any, value: Any, where: str) -> Any:
    _checked(isinstance(value, dict), value, "an object", where)
    names = [field.name for field in fields(wanted)]
    unknown, missing = [n for n in value if n not in names], [n for n in names if n not in value]
    if unknown or missing:
        problem = f"no '{missing[0]}'" if missing else f"an unknown '{unknown[0]}'"
        raise InputError(f"{where}: got {problem}. Was it written by another edgeprune?")
    hints = get_type_hints(wanted)
    return wanted(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in names})


def _optional(inner: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in inner:
        return None
    (one,) = (each for each in inner if each is not type(None))
    return decode(one, value, where)


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _checked(isinstance(value, (list, tuple)), value, "a list", where)
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    _checked(len(kinds) == len(value), value, f"{len(kinds)} entries", where)
    return tuple(
        decode(kind, each, f"{where}.{i}")
        for i, (kind, each) in enumerate(zip(kinds, value, strict=True))
    )


def _checked(good: bool, value: Any, wanted: str, where: str) -> Any:
    if not good:
        raise InputError(f"{where}: got {str(value)[:60]!r}, wanted {wanted}")
    return value
