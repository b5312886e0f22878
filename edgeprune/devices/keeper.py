"""The keeper: the one program that must be on a device before anything else can be."""

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
FLAGS = ("-std=c17", "-static", "-O2", "-Wl,-s", "-Wall", "-Wextra", "-Werror")


def keeper(target: str) -> Path:
    """The keeper for a target, compiled if the cache does not have it.

    Its system calls are Linux's alone, and Android is one: both get the same program.

    Raises:
        InputError: the compiler is not installed.
        EdgepruneError: it refused; its words are in ``detail``.
    """
    triple = f"{target.split('-')[0]}-linux-musl"
    source = sources() / "runner" / "keeper.c"
    key = files.content_hash(files.sha256_of(source), FLAGS, triple, ZIG)
    path = cache_dir() / "runner" / f"{triple}-{key}" / "keeper"
    if not path.exists():
        if importlib.util.find_spec("ziglang") is None:
            raise InputError(f"the keeper's compiler is not installed: pip install ziglang=={ZIG}")
        files.write_atomic(path, lambda temporary: _compile(source, triple, temporary))
        path.chmod(0o755)
    return path


def _compile(source: Path, triple: str, out: Path) -> None:
    words = [sys.executable, "-m", "ziglang", "cc", "-target", triple, *FLAGS, str(source)]
    ended = subprocess.run([*words, "-o", str(out)], capture_output=True, text=True)
    if ended.returncode:
        raise EdgepruneError("the keeper does not compile", detail=ended.stderr)
