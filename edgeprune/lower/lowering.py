"""How a program is to become a file, and the runtimes that files are made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.lower.delegation import DelegationRow
from edgeprune.lower.quiet import collector_paused, graphs_forgotten, quiet
from edgeprune.registry import Registry
from edgeprune.versions import versions

Precision = Literal["fp32", "fp16", "int8"]
Delegate = Literal["auto", "off"]


@dataclass(frozen=True)
class Lowering:
    """What a file is made for.

    Attributes:
        precision: ``fp32``; ``fp16`` for weights and, in ExecuTorch, all computing in half floats;
            ``int8`` for dynamic per-channel int8 linear layers. Files take and give float32.
        runtime: one of ``RUNTIMES``.
        delegate: ``auto`` hands our own delegate what it runs faster than XNNPACK; ``off`` makes
            a file that a stock runtime loads, for apps that cannot ship our library.
        isa: of the device, as in ``Cluster.isa``: which of our kernels win there.

    Raises:
        InputError: an unknown word.
    """

    precision: Precision = "fp32"
    runtime: str = "executorch"
    delegate: Delegate = "auto"
    isa: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {"precision": get_args(Precision), "delegate": get_args(Delegate)}
        for name, words in (*known.items(), ("runtime", sorted(RUNTIMES))):
            if (value := getattr(self, name)) not in words:
                raise InputError(f"got {name} {value!r}, wanted one of: {', '.join(words)}")

    @property
    def words(self) -> dict[str, str]:
        """What was asked for, as flags and manifests say it."""
        return {name: getattr(self, name) for name in ("precision", "runtime", "delegate")}

    @property
    def packages(self) -> tuple[str, ...]:
        """What makes the file, beside torch."""
        return RUNTIMES[self.runtime].packages

    def check_packages(self) -> None:
        """Say at once what would be missing only after minutes of other work.

        Raises:
            InputError: a package that makes the file is not installed.
        """
        found = versions(self.packages)
        missing = [package for package in self.packages if package not in found]
        if missing:
            raise InputError(
                f"runtime {self.runtime}: {', '.join(missing)} not installed; `edgeprune doctor` "
                "says how. LiteRT's converter exists for x86-64 Linux alone: build there, the "
                ".tflite runs on any processor."
            )

    @property
    def suffix(self) -> str:
        """Of files: ``.pte``, ``.tflite``."""
        return RUNTIMES[self.runtime].suffix

    def __str__(self) -> str:
        ours = " + edgeprune" if self.delegate == "auto" else ""
        return f"{self.runtime} + XNNPACK{ours}, {self.precision}"


@dataclass(frozen=True)
class Lowered:
    """A lowered graph in memory; fields as in ``Artifact``.

    Attributes:
        inputs: examples of the types that the file takes; LiteRT has int32 where torch has int64.
        outputs: likewise, of those that it gives.
    """

    data: bytes
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    delegation: tuple[DelegationRow, ...]
    planned_memory_bytes: int

    @property
    def delegated_nodes(self) -> int:
        """Operators that a delegate runs."""
        return sum(row.delegate != "cpu" for row in self.delegation)


LowerGraph: TypeAlias = Callable[[torch.nn.Module, tuple[torch.Tensor, ...], Lowering], Lowered]


class Runtime(NamedTuple):
    """What runs files ending in ``suffix``, the function that makes them, and what that needs."""

    suffix: str
    packages: tuple[str, ...]
    lower_graph: LowerGraph


RUNTIMES: Registry[Runtime] = Registry("runtime")


def register_runtime(
    name: str, suffix: str, packages: tuple[str, ...] = ()
) -> Callable[[LowerGraph], LowerGraph]:
    """Decorate ``lower_graph(module, inputs, lowering) -> Lowered`` to offer it under ``name``.

    Args:
        packages: whose versions the file depends on.
    """

    def add(lower: LowerGraph) -> LowerGraph:
        RUNTIMES.add(name, Runtime(suffix, packages, lower))
        return lower

    return add


def lower_graph(
    module: torch.nn.Module, inputs: Sequence[torch.Tensor], lowering: Lowering
) -> Lowered:
    """Lower any exportable module for static ``inputs`` (batch 1); ``module`` is not changed.

    Masks must be additive and finite. Safe to call from a worker process; not from two threads
    at once.

    Raises:
        InputError: the runtime's compiler is not installed.
        EdgepruneError: torch or the runtime's compiler refused the graph; their words are in
            ``detail``.
    """
    with compiling(lowering):
        return RUNTIMES[lowering.runtime].lower_graph(module, dense(inputs), lowering)


@contextmanager
def compiling(lowering: Lowering) -> Iterator[None]:
    """Manners for a runtime's compiler; what it refuses is said in one sentence.

    Raises:
        InputError, EdgepruneError: as ``lower_graph`` does.
    """
    lowering.check_packages()
    try:
        with quiet(), graphs_forgotten(), collector_paused(), torch.no_grad():
            yield
    except EdgepruneError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise EdgepruneError(
            f"{lowering.runtime} cannot lower this program at {lowering.precision}: "
            f"{type(error).__name__}: {reason.strip()[:300]}",
            detail=str(error),
        ) from error


def dense(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies with plain strides: with one channel, strides can also mean channels last, and the
    file would then ask for inputs in that order."""
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)
