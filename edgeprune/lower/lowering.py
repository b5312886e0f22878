"""How a program is to become a file, and the runtimes that files are made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from edgeprune.errors import InputError
from edgeprune.lower.delegation import DelegationRow

Precision = Literal["fp32", "int8"]
Delegate = Literal["auto", "off"]


@dataclass(frozen=True)
class Lowering:
    """What a file is made for.

    Attributes:
        precision: ``fp32``, or ``int8`` for dynamic per-channel int8 linear layers.
        runtime: one of ``RUNTIMES``.
        delegate: ``auto`` hands our own delegate what it runs faster than XNNPACK; ``off`` makes
            a file that a stock runtime loads, for apps that cannot ship our library.

    Raises:
        InputError: an unknown word.
    """

    precision: Precision = "fp32"
    runtime: str = "executorch"
    delegate: Delegate = "auto"

    def __post_init__(self) -> None:
        known = {"precision": get_args(Precision), "delegate": get_args(Delegate)}
        for name, words in (*known.items(), ("runtime", sorted(RUNTIMES))):
            if (value := getattr(self, name)) not in words:
                raise InputError(f"got {name} {value!r}, wanted one of: {', '.join(words)}")

    @property
    def suffix(self) -> str:
        """Of files: ``.pte``, ``.tflite``."""
        return RUNTIMES[self.runtime].suffix

    def __str__(self) -> str:
        ours = " + edgeprune" if self.delegate == "auto" else ""
        return f"{self.runtime} + XNNPACK{ours}, {self.precision}"


@dataclass(frozen=True)
class Lowered:
    """A lowered graph in memory; fields as in ``Artifact``."""

    data: bytes
    outputs: tuple[torch.Tensor, ...]
    delegation: tuple[DelegationRow, ...]
    planned_memory_bytes: int

    @property
    def delegated_nodes(self) -> int:
        """Operators that a delegate runs."""
        return sum(row.delegate != "cpu" for row in self.delegation)


LowerGraph: TypeAlias = Callable[[torch.nn.Module, Sequence[torch.Tensor], Lowering], Lowered]


class Runtime(NamedTuple):
    """What runs files ending in ``suffix``, and the function that makes them."""

    suffix: str
    lower_graph: LowerGraph


RUNTIMES: dict[str, Runtime] = {}


def register_runtime(name: str, suffix: str) -> Callable[[LowerGraph], LowerGraph]:
    """Decorate ``lower_graph(module, inputs, lowering) -> Lowered`` to offer it under ``name``."""

    def add(lower: LowerGraph) -> LowerGraph:
        if name in RUNTIMES:
            raise ValueError(f"runtime {name!r} is registered twice: {RUNTIMES[name]}, {lower}")
        RUNTIMES[name] = Runtime(suffix, lower)
        return lower

    return add


def lower_graph(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], lowering: Lowering
) -> Lowered:
    """Lower any exportable module for static ``inputs`` (batch 1); ``module`` is not changed.

    Masks must be additive and finite. Safe to call from a worker process; not from two threads
    at once.

    Raises:
        EdgepruneError: torch or the runtime's compiler refused the graph; their words are in
            ``detail``.
    """
    return RUNTIMES[lowering.runtime].lower_graph(module, inputs, lowering)
