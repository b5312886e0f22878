"""Arm's compiler for Ethos-U NPUs, in a Python environment of its own."""

from __future__ import annotations

import csv
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgeprune.devices.environment import Environment, clean
from edgeprune.errors import EdgepruneError

VERSION = "5.2.0"
# Of its own: it pins no numpy, but brings whatever is newest.
ENVIRONMENT = Environment("ethos-u-vela", VERSION)
LIMIT_S = 600.0
KIB = 1024
# What it puts behind the name of a tensor that a fused activation writes.
FUSED = "_act"
# What it says of an operator that it leaves to the CPU.
_REFUSAL = re.compile(
    r"^Warning \(supported operators\) operator: \S+, ofm: '(?P<tensor>[^\n]*)'\n"
    r"Reason: (?P<reason>[^\n]+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class System:
    """What vela compiles for: one of its accelerators, and sections of its ``Arm/vela.ini``."""

    accelerator: str
    system: str
    memory: str

    def __str__(self) -> str:
        return f"ethos-u-vela {VERSION}, {self.system}, {self.memory}"


@dataclass(frozen=True)
class Compiled:
    """A file for TFLite Micro, in which the NPU's part is operators named ``ethos-u``.

    Attributes:
        npu_ms: vela's estimate of the NPU's part; the CPU's counts as nothing.
        clock_hz: of the NPU.
        arena_bytes: memory for activations.
        refusals: tensor that an operator writes -> why vela leaves the operator to the CPU.
    """

    data: bytes
    npu_ms: float
    clock_hz: float
    arena_bytes: int
    refusals: dict[str, str]


def compile_for(data: bytes, system: System) -> Compiled:
    """Compile an int8 ``.tflite``.

    Raises:
        InputError: vela cannot be had here.
        EdgepruneError: it refuses the file, or takes too long.
    """
    python = ENVIRONMENT.python()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        given, out = Path(folder, "model.tflite"), Path(folder, "out")
        given.write_bytes(data)
        words = (
            *(str(python), "-m", "ethosu.vela", str(given), "--output-dir", str(out)),
            *("--accelerator-config", system.accelerator, "--config", "Arm/vela.ini"),
            *("--system-config", system.system, "--memory-mode", system.memory),
            "--verbose-performance",
        )
        said = _run(words)
        with Path(out, f"model_summary_{system.system}.csv").open(newline="") as stream:
            (summary,) = csv.DictReader(stream)
        return Compiled(
            data=Path(out, "model_vela.tflite").read_bytes(),
            npu_ms=float(summary["inference_time"]) * 1e3,
            clock_hz=float(summary["core_clock"]),
            arena_bytes=round(float(summary["sram_memory_used"]) * KIB),
            refusals={
                found["tensor"].removesuffix(FUSED): found["reason"]
                for found in _REFUSAL.finditer(said)
            },
        )


def _run(words: tuple[str, ...]) -> str:
    """What vela says."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, env=clean())
    except subprocess.TimeoutExpired as error:
        raise EdgepruneError(
            f"ethos-u-vela {VERSION}: not done after {LIMIT_S:.0f} s; the model is too large for it"
        ) from error
    said = done.stdout + done.stderr
    if done.returncode:
        reason = (said.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise EdgepruneError(
            f"ethos-u-vela {VERSION} refuses the file: {reason[:300]}", detail=said
        )
    return said
