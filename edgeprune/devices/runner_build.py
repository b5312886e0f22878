"""The runner compiled: by zig for Linux, by the user's NDK for Android."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from edgeprune import console
from edgeprune.errors import InputError
from edgeprune.kernels.build import ADAPTER_FLAGS, run_compiler, sources
from edgeprune.kernels.libraries import LIBRARIES
from edgeprune.kernels.targets import Target

# The operators and XNNPACK register themselves when they are loaded: nothing names them.
EXECUTORCH = (
    *("libexecutorch.so", "libexecutorch_kernels_optimized.so"),
    *("libexecutorch_kernels_quantized.so", "libexecutorch_backend_xnnpack.so"),
    "libexecutorch_threadpool.so",
)
# Android 8. Phones with 16 KB pages load nothing that is aligned to less.
NDK_TARGET = "--target=aarch64-linux-android26"
NDK_LINK_FLAGS = ("-static-libstdc++", "-Wl,-z,max-page-size=16384", "-Wl,-s")


def compile_for_linux(target: Target, executorch: Path, out: Path) -> None:
    """With ExecuTorch, whose libraries it looks for beside itself.

    Args:
        executorch: the package of its wheel for the target.

    Raises:
        EdgepruneError: the compiler refused; its words are in ``detail``.
    """
    linked = (f"-l:{name}" for name in EXECUTORCH)
    _compile(
        (sys.executable, "-m", "ziglang", "c++", "-target", target.triple),
        sorted((sources() / "runner").glob("*.cc")),
        LIBRARIES["executorch"].compile_flags(executorch),
        (
            *(f"-L{executorch}/lib", "-Wl,--no-as-needed", *linked, "-Wl,--as-needed", "-ldl"),
            *("-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined", "-Wl,-s"),
        ),
        out,
    )


def compile_for_android(out: Path) -> None:
    """Without ExecuTorch, whose libraries for Android are built from its sources.

    Raises:
        InputError: there is no NDK.
        EdgepruneError: its compiler refused; its words are in ``detail``.
    """
    held = (sources() / "runner").glob("*.cc")
    without = sorted(source for source in held if source.name != "executorch.cc")
    _compile((str(ndk_compiler()), NDK_TARGET), without, (), NDK_LINK_FLAGS, out)


def ndk_compiler() -> Path:
    """The NDK's C++ compiler.

    Raises:
        InputError: ``ANDROID_NDK_HOME`` is not set, or is no NDK.
    """
    home = os.environ.get("ANDROID_NDK_HOME", "")
    found = sorted(Path(home).glob("toolchains/llvm/prebuilt/*/bin/clang++")) if home else []
    if not found:
        got = f"in {home} there is no clang++" if home else "it is not set"
        raise InputError(
            f"ANDROID_NDK_HOME: {got}, wanted the folder of Android's NDK, which compiles the "
            "runner for phones. Or name a program of the runtime's own: --runner benchmark_model"
        )
    return found[0]


def _compile(
    command: tuple[str, ...],
    held: Sequence[Path],
    flags: Sequence[str],
    link_flags: Sequence[str],
    out: Path,
) -> None:
    compiler = partial(run_compiler, command)
    with (
        tempfile.TemporaryDirectory() as folder,
        console.progress("compiling the runner", len(held) + 1, "files") as advance,
        ThreadPoolExecutor(2) as pool,
    ):
        objects = [str(Path(folder, f"{source.stem}.o")) for source in held]
        jobs = [
            (*ADAPTER_FLAGS, *flags, "-c", str(source), "-o", made)
            for source, made in zip(held, objects, strict=True)
        ]
        for source, _ in zip(held, pool.map(lambda job: compiler(*job), jobs), strict=True):
            advance(note=source.name)
        compiler(*objects, *link_flags, "-o", str(out))
        advance(note=out.name)
