"""Choices that register themselves: solvers, criteria, kinds of device, runtimes, rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from edgeprune.errors import InputError

Choice = TypeVar("Choice")


class Registry(dict[Any, Choice]):
    """Choices of one kind by name, in the order in which they came.

    Args:
        kind: what the choices are, as messages call it.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: Any, choice: Choice) -> None:
        """Offer a choice under its one name.

        Raises:
            ValueError: the name is taken.
        """
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is registered twice: {self[name]}, {choice}")
        self[name] = choice

    def register(self, *names: Any) -> Callable[[Choice], Choice]:
        """Decorate a choice to offer it under each of the names."""

        def add(choice: Choice) -> Choice:
            for name in names:
                self.add(name, choice)
            return choice

        return add

    def named(self, name: str) -> Choice:
        """The choice of a name that a user gave.

        Raises:
            InputError: there is none; lists those that there are.
        """
        if name not in self:
            known = ", ".join(sorted(self))
            raise InputError(f"{self.kind} '{name}': unknown; there are: {known}")
        return self[name]
