"""What a runtime offers the worker, and which one runs a file: its name's suffix says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os.path import splitext
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from edgeprune.errors import InputError

Run: TypeAlias = Callable[[], Sequence[Any]]
"""Run once; copies of the outputs, of any type that numpy reads, in the program's order."""


class Event(NamedTuple):
    """One kind of event of a trace; fields as in ``OperatorTime``."""

    op: str
    event: str
    delegate: str
    ms: float
    calls: int


class Method(Protocol):
    """A loaded file, ready to run."""

    def bind(self, inputs: Sequence[np.ndarray]) -> Run:
        """What runs it once on these inputs, with nothing left to convert."""
        ...


class Runtime(Protocol):
    """A runtime with its libraries loaded; both raise where the file is none of its own."""

    def load(self, path: str, signature: str = "") -> Method:
        """A file, ready to run.

        Args:
            signature: which of several ways into the file; the first if not given.
        """
        ...

    def trace(
        self, path: str, inputs: Sequence[np.ndarray], runs: int, signature: str = ""
    ) -> list[Event]:
        """Time per kind of event, the median over runs."""
        ...


Opener: TypeAlias = Callable[[int], Runtime]
Registered = TypeVar("Registered", bound=Opener)
RUNTIMES: dict[str, Opener] = {}


def register(suffix: str) -> Callable[[Registered], Registered]:
    """Decorate ``open(threads) -> Runtime`` to offer it for files ending in ``suffix``."""

    def add(opener: Registered) -> Registered:
        if suffix in RUNTIMES:
            raise ValueError(f"files {suffix} have two runtimes: {RUNTIMES[suffix]}, {opener}")
        RUNTIMES[suffix] = opener
        return opener

    return add


def runtime_of(path: str) -> str:
    """The suffix under which a file's runtime is registered.

    Raises:
        InputError: no runtime takes such files.
    """
    suffix = splitext(path)[1]
    if suffix not in RUNTIMES:
        raise InputError(f"{path}: got a file ending in {suffix!r}, wanted {' or '.join(RUNTIMES)}")
    return suffix


def events_by_name(
    entries: Iterable[tuple[str, float, int]], name: Callable[[str], tuple[str, str]]
) -> list[Event]:
    """Sum ``(event, ms, calls)`` by event; ``name`` gives its operator and delegate."""
    found: dict[str, Event] = {}
    for event, ms, calls in entries:
        op, delegate = name(event)
        before = found.get(event, Event(op, event, delegate, 0.0, 0))
        found[event] = before._replace(ms=before.ms + ms, calls=before.calls + calls)
    return list(found.values())


# XNNPACK's words in a trace and ours, the same in every runtime that calls it.
_XNNPACK = (
    *(("Fully Connected", "linear"), ("Batch Matrix Multiply", "bmm"), ("Convolution", "conv")),
    *(("Softmax", "softmax"), ("GELU", "gelu"), ("Transpose", "transpose"), ("Copy", "reshape")),
    *(("Static Reshape", "reshape"), ("Add", "add"), ("Multiply", "mul"), ("Convert", "quantize")),
    *(("Subtract", "sub"), ("Divide", "div"), ("Slice", "slice"), ("Concatenate", "cat")),
    *(("Squared Difference", "squared_difference"), ("Mean", "mean"), ("Sum", "sum")),
    ("Reciprocal Square Root", "rsqrt"),
)


def xnnpack_operator(event: str) -> str:
    """Our word for an operator of XNNPACK, else the first of its own."""
    found = (op for prefix, op in _XNNPACK if event.startswith(prefix))
    return next(found, event.split(" (")[0].lower())
