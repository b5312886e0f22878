"""The native kernels, compiled with a toolchain that pip installs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgeprune import console, files
from edgeprune.cache import cache_dir
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.kernels.targets import Target, host_target, target_named
from edgeprune.versions import versions

LIBRARY = "libedgeprune_kernels.so"
# Kernels own no state and call nothing: no exceptions, no types at run time, no errno.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffreestanding", "-nostdinc++"),
    *("-fno-exceptions", "-fno-rtti", "-ffp-contract=fast-honor-pragmas", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Werror"),
)


def build_kernels(target: str | None = None) -> Path:
    """The shared library for a target, compiled if it is not in the cache yet.

    Args:
        target: a name in ``TARGETS``; None is this machine.

    Raises:
        InputError: unknown target, or the compiler is not installed.
        EdgepruneError: the compiler refused; its words are in ``detail``.
    """
    name = target or host_target()
    wanted = target_named(name)
    if importlib.util.find_spec("ziglang") is None:
        raise InputError(
            "the kernels' compiler is not installed. Run: pip install 'edgeprune[kernels]'"
        )
    library = cache_dir() / "kernels" / f"{name}-{_key(wanted)}" / LIBRARY
    if not library.exists():
        files.write_atomic(library, lambda temporary: _compile(name, wanted, temporary))
    return library


def sources() -> Path:
    """The folder of the kernels' sources: in the installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_backends"
    return (installed if installed.is_dir() else package.parent / "backends") / "kernels"


def _key(target: Target) -> str:
    held = [files.sha256_of(file) for file in sorted(sources().glob("*"))]
    return files.content_hash(held, FLAGS, vars(target), versions(("ziglang",)))


def _compile(name: str, target: Target, library: Path) -> None:
    jobs = list(kernel_jobs(target))
    with (
        tempfile.TemporaryDirectory() as folder,
        console.progress(f"compiling kernels for {name}", len(jobs) + 1, "files") as advance,
        ThreadPoolExecutor(2) as pool,
    ):
        objects = [Path(folder, f"{number}.o") for number in range(len(jobs))]
        done = pool.map(lambda job, out: _zig("c++", target, *job, "-o", str(out)), jobs, objects)
        for (*_, source), _ in zip(jobs, done, strict=True):
            advance(note=Path(source).name)
        # As C: the kernels need no C++ library, and zig would compile one first.
        _zig("cc", target, "-shared", *target.link_flags, *map(str, objects), "-o", str(library))
        advance(note=LIBRARY)


def kernel_jobs(target: Target) -> Iterator[tuple[str, ...]]:
    """The arguments that compile each object, its source the last."""
    folder = sources()
    for source, kernels in (
        ("slim_attention.cc", target.kernels),
        ("layer_norm.cc", target.kernels),
        ("linear_int8.cc", target.linear),
    ):
        for kernel, flags in kernels.items():
            yield (*FLAGS, *flags, f"-DEP_ISA={kernel}", "-c", str(folder / source))
    yield (*FLAGS, "-c", str(folder / "dispatch.cc"))


def _zig(language: str, target: Target, *arguments: str) -> None:
    command = [sys.executable, "-m", "ziglang", language, "-target", target.triple, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        first = next((line for line in ended.stderr.splitlines() if "error" in line), "no reason")
        raise EdgepruneError(f"the kernels do not compile: {first}", detail=ended.stderr)
