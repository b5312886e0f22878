"""Small programs for devices: the keeper, without which nothing is done there, and the probe."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from edgeprune import files
from edgeprune.cache import cache_dir
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.kernels.build import ZIG, sources

# As in backends/runner/keeper.c.
DAMAGED, FULL, BUSY, OVERTIME, LOST, MISSING = 65, 73, 75, 124, 125, 127
FLAGS = ("-static", "-Wl,-s", "-Wall", "-Wextra", "-Werror")
ARM_ISA = ("dotprod", "i8mm")
X86_ISA = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512f": ("-mavx512f",),
    "avx512_vnni": ("-mavx512vnni",),
    "avx_vnni": ("-mavxvnni",),
}


def keeper(target: str) -> Path:
    """The keeper for a target, compiled if the cache does not have it.

    Raises:
        InputError: the compiler is not installed.
        EdgepruneError: it refused; its words are in ``detail``.
    """
    return _program("keeper", target, ("-std=c17", "-O2"))


def probe(target: str, isa: tuple[str, ...]) -> Path:
    """What measures a processor with these instructions; raises as ``keeper``."""
    return _program(
        "probe", target, ("-std=gnu17", "-O2", "-ffp-contract=fast", *_flags(target, isa))
    )


def _flags(target: str, isa: tuple[str, ...]) -> tuple[str, ...]:
    if target.startswith("aarch64"):
        return ("-mcpu=generic" + "".join(f"+{each}" for each in ARM_ISA if each in isa),)
    return tuple(flag for each, flags in X86_ISA.items() if each in isa for flag in flags)


def _program(name: str, target: str, flags: tuple[str, ...]) -> Path:
    """Static: Android is a Linux too, and its C library is not needed."""
    triple = f"{target.split('-')[0]}-linux-musl"
    source = sources() / "runner" / f"{name}.c"
    key = files.content_hash(files.sha256_of(source), flags, FLAGS, triple, ZIG)
    path = cache_dir() / "runner" / f"{triple}-{key}" / name
    if not path.exists():
        if importlib.util.find_spec("ziglang") is None:
            raise InputError(f"the compiler is not installed. Run: pip install ziglang=={ZIG}")
        files.write_atomic(path, lambda out: _compile(source, triple, flags, out))
        path.chmod(0o755)
    return path


def _compile(source: Path, triple: str, flags: tuple[str, ...], out: Path) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", triple, *FLAGS, *flags]
    ended = subprocess.run([*command, str(source), "-o", str(out)], capture_output=True, text=True)
    if ended.returncode:
        raise EdgepruneError(f"{source.name} does not compile", detail=ended.stderr)
