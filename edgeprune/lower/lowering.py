"""How a program is to become a file, and the runtimes that files are made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.lower.delegation import DelegationRow
from edgeprune.lower.quiet import collector_paused, compiled_when_called, graphs_forgotten, quiet
from edgeprune.registry import Registry
from edgeprune.versions import COMMON, versions

Precision = Literal["fp32", "fp16", "int8"]
Delegate = Literal["auto", "off"]
CPU = "cpu"
"""In place of an accelerator: none."""


@dataclass(frozen=True)
class Lowering:
    """What a file is made for.

    Attributes:
        precision: ``fp32``; ``fp16`` for weights and, in ExecuTorch, all computing in half floats;
            ``int8`` for dynamic per-channel int8 linear layers, and for an NPU for all operators,
            their activations on scales from calibration. Files take and give float32.
        runtime: one of ``RUNTIMES``.
        delegate: ``auto`` hands our own delegate what it runs faster than XNNPACK; ``off`` makes
            a file that a stock runtime loads, for apps that cannot ship our library.
        isa: of the device, as in ``Cluster.isa``: which of our kernels win there.
        accelerator: one of ``ACCELERATORS``, whose compiler makes the file; ``cpu`` is none.

    Raises:
        InputError: an unknown word, or words that do not go together.
    """

    precision: Precision = "fp32"
    runtime: str = "executorch"
    delegate: Delegate = "auto"
    isa: tuple[str, ...] = ()
    accelerator: str = CPU

    def __post_init__(self) -> None:
        known = {"precision": get_args(Precision), "delegate": get_args(Delegate)}
        known |= {"runtime": tuple(sorted(RUNTIMES)), "accelerator": (CPU, *sorted(ACCELERATORS))}
        for name, words in known.items():
            if (value := getattr(self, name)) not in words:
                raise InputError(f"got {name} {value!r}, wanted one of: {', '.join(words)}")
        if self.offload is not None:
            self._check_offload(self.offload)

    def _check_offload(self, offload: Offload) -> None:
        if self.runtime != offload.runtime:
            raise InputError(
                f"accelerator {self.accelerator}: got runtime {self.runtime!r}, wanted "
                f"{offload.runtime!r}: its compiler makes files for that one alone"
            )
        if self.precision not in offload.precisions:
            raise InputError(
                f"accelerator {self.accelerator}: got precision {self.precision!r}, wanted "
                f"{' or '.join(offload.precisions)}. Add --precision {offload.precisions[0]}."
            )
        if self.delegate != "off":
            raise InputError(
                f"accelerator {self.accelerator}: got delegate {self.delegate!r}, wanted 'off': "
                "its compiler does not know our operators"
            )

    def asked(self, **words: Any) -> Lowering:
        """With other words in place of some; an accelerator brings what goes with it.

        Raises:
            InputError: as the constructor does.
        """
        wanted = words.get("accelerator", self.accelerator)
        if wanted in ACCELERATORS and wanted != self.accelerator:
            words = {"runtime": ACCELERATORS[wanted].runtime, "delegate": "off"} | words
        return replace(self, **words)

    @property
    def offload(self) -> Offload | None:
        """The accelerator's entry in the registry; None for the CPU."""
        return None if self.accelerator == CPU else ACCELERATORS[self.accelerator]

    @property
    def axes(self) -> tuple[str, ...]:
        """What plans may cut without leaving the accelerator."""
        selects = self.offload is None or self.offload.selects
        return ("depth", "width", *(("length",) if selects else ()))

    @property
    def words(self) -> dict[str, str]:
        """What was asked for, as flags and manifests say it."""
        names = ("precision", "runtime", "delegate", "accelerator")
        found = {name: getattr(self, name) for name in names}
        return {name: word for name, word in found.items() if name != "accelerator" or word != CPU}

    @property
    def packages(self) -> tuple[str, ...]:
        """What makes the file, beside torch."""
        more = self.offload.packages if self.offload else ()
        return (*RUNTIMES[self.runtime].packages, *more)

    @property
    def versions(self) -> dict[str, str]:
        """Of Python and all that makes the file."""
        tools = self.offload.tools if self.offload else {}
        return versions((*COMMON, *self.packages)) | dict(tools)

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
        if self.offload is not None:
            return f"{self.runtime} + {self.offload.title}, {self.precision}"
        ours = " + edgeprune" if self.delegate == "auto" else ""
        return f"{self.runtime} + XNNPACK{ours}, {self.precision}"


@dataclass(frozen=True)
class Lowered:
    """A lowered graph in memory; fields as in ``Artifact``.

    Attributes:
        inputs: examples of the types that the file takes; LiteRT has int32 where torch has int64.
        outputs: likewise, of those that it gives.
        portable: the same program as it went into the accelerator's compiler, which this machine
            can run; None where there is no such file.
    """

    data: bytes
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    delegation: tuple[DelegationRow, ...]
    planned_memory_bytes: int
    portable: bytes | None = None
    estimate: Estimate | None = None

    @property
    def delegated_nodes(self) -> int:
        """Operators that a delegate runs."""
        return sum(row.delegated for row in self.delegation)


@dataclass(frozen=True)
class Estimate:
    """What a file takes, by the vendor's compiler; nothing of it was measured.

    Attributes:
        latency_ms: of one run, both parts together.
        accelerator_ms: the vendor's estimate.
        cpu_ms: of operators that stay on the CPU, on an assumption of ours: the vendor's compiler
            says nothing of them.
        edges_ms: of that, turning inputs and outputs from floats into int8 and back.
        arena_bytes: memory for activations.
        source: the compiler, its version and the system it assumes.
    """

    latency_ms: float
    accelerator_ms: float
    cpu_ms: float
    edges_ms: float
    arena_bytes: int
    source: str


Tensors: TypeAlias = tuple[torch.Tensor, ...]
LowerGraph: TypeAlias = Callable[[torch.nn.Module, Tensors, Lowering], Lowered]
LowerForAccelerator: TypeAlias = Callable[
    [torch.nn.Module, Tensors, Lowering, Sequence[Tensors]], Lowered
]


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


class Offload(NamedTuple):
    """An accelerator that files can be made for.

    Attributes:
        title: its name for people.
        runtime: what loads its files.
        precisions: those that it computes in; the first is suggested.
        packages: that make the file, beside the runtime's own.
        tools: compiler -> version, of those in environments of their own.
        calibrated: whether activations need scales from calibration inputs.
        estimates: whether its compiler says what a file takes.
        selects: whether it runs what selects tokens; else plans select none.
    """

    title: str
    runtime: str
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...]
    tools: Mapping[str, str]
    calibrated: bool
    estimates: bool
    selects: bool
    lower_graph: LowerForAccelerator


ACCELERATORS: Registry[Offload] = Registry("accelerator")


def register_accelerator(
    name: str,
    title: str,
    runtime: str,
    precisions: tuple[Precision, ...],
    packages: tuple[str, ...] = (),
    *,
    tools: Mapping[str, str] | None = None,
    calibrated: bool = False,
    estimates: bool = False,
    selects: bool = True,
) -> Callable[[LowerForAccelerator], LowerForAccelerator]:
    """Decorate ``lower(module, inputs, lowering, calibration) -> Lowered`` to offer it.

    Args:
        title, runtime, precisions, packages, tools: as in ``Offload``.
        calibrated, estimates, selects: likewise.
    """

    def add(lower: LowerForAccelerator) -> LowerForAccelerator:
        how = (packages, tools or {}, calibrated, estimates, selects)
        ACCELERATORS.add(name, Offload(title, runtime, precisions, *how, lower))
        return lower

    return add


def lower_graph(
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    lowering: Lowering,
    calibration: Sequence[Tensors] = (),
) -> Lowered:
    """Lower any exportable module for static ``inputs`` (batch 1); ``module`` is not changed.

    Masks must be additive and finite. Safe to call from a worker process; not from two threads
    at once.

    Args:
        calibration: batches of inputs, for accelerators that need scales for activations; only
            ``inputs`` if not given.

    Raises:
        InputError: the runtime's compiler is not installed.
        EdgepruneError: torch or the runtime's compiler refused the graph; their words are in
            ``detail``.
    """
    with compiling(lowering):
        given = dense(inputs)
        if lowering.offload is None:
            return RUNTIMES[lowering.runtime].lower_graph(module, given, lowering)
        return lowering.offload.lower_graph(module, given, lowering, calibration or (given,))


@contextmanager
def compiling(lowering: Lowering) -> Iterator[None]:
    """Manners for a runtime's compiler; what it refuses is said in one sentence.

    Raises:
        InputError, EdgepruneError: as ``lower_graph`` does.
    """
    lowering.check_packages()
    try:
        with (
            quiet(),
            collector_paused(),
            compiled_when_called(),
            graphs_forgotten(),
            torch.no_grad(),
        ):
            yield
    except EdgepruneError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        maker = lowering.runtime if lowering.offload is None else lowering.accelerator
        raise EdgepruneError(
            f"{maker} cannot lower this program at {lowering.precision}: "
            f"{type(error).__name__}: {reason.strip()[:300]}",
            detail=str(error),
        ) from error


def dense(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies with plain strides: with one channel, strides can also mean channels last, and the
    file would then ask for inputs in that order."""
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)
