"""What a runtime offers the worker, and which one runs a file: its name's suffix says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os.path import splitext
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from edgeprune.errors import InputError
from edgeprune.registry import Registry

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

    def prepare(self, path: str, signature: str = "") -> Callable[[], Method]:
        """What loads a file; other libraries that it needs are in memory before.

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
"""``open(threads) -> Runtime``, for files of one suffix."""
RUNTIMES: Registry[Opener] = Registry("runtime for files")
register = RUNTIMES.register


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


# Our operators, as our delegates call them.
OURS = {
    **{"slim_attention": "attention", "slim_attention_scores": "attention"},
    **{"layer_norm": "layer_norm", "token_select": "token_select"},
    **{"linear_int8": "linear", "FULLY_CONNECTED": "linear"},
}
# XNNPACK's words in a trace, and ours for them, the same in every runtime that calls it.
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
