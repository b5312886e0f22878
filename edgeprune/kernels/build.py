"""Native libraries: carried by the wheel, or compiled with a toolchain that pip installs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from edgeprune import console, files
from edgeprune.cache import cache_dir
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.kernels.libraries import LIBRARIES, Library
from edgeprune.kernels.targets import Target, host_target, target_named

# As in pyproject.toml.
ZIG = "0.17.1"
# What a wheel carries, in the folders that the cache has; a checkout carries none.
CARRIED = Path(__file__).parents[1] / "_libraries"
# Kernels own no state and call nothing: no exceptions, no types at run time, no errno.
KERNEL_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffreestanding", "-nostdinc++"),
    *("-fno-exceptions", "-fno-rtti", "-ffp-contract=fast-honor-pragmas", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Werror"),
)
ADAPTER_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
# Of the C++ library the headers alone: its code, zig would compile for a minute first.
NO_CPP_CODE = ("-fno-exceptions", "-fno-rtti", "-D_LIBCPP_VERBOSE_ABORT(...)=__builtin_abort()")
# What debuggers read is six parts in seven, and names folders of this machine. Without -O, zig
# compiles a runtime for debugging first: 8 s, not 4.
LINK_FLAGS = ("-shared", "-O2", "-Wl,-s")


def build_library(
    name: str = "kernels", target: str | None = None, sdk: Path | None = None
) -> Path:
    """A shared library for a target, compiled if neither the wheel nor the cache has it.

    Args:
        name: of ``LIBRARIES``.
        target: a name in ``TARGETS``; None is this machine.
        sdk: the runtime's headers and libraries for the target, as its wheel unpacks; None takes
            the installed runtime.

    Raises:
        InputError: unknown library or target, the compiler is not installed, or nothing to link.
        EdgepruneError: the compiler refused; its words are in ``detail``.
    """
    library = LIBRARIES[name]
    triple = target or host_target()
    wanted = target_named(triple)
    library.check(triple, wanted)
    folder = library.sdk(triple, sdk)
    place = Path(f"{triple}-{_key(library, wanted, sdk)}", library.file)
    if (CARRIED / place).exists():
        return CARRIED / place
    path = cache_dir() / "kernels" / place
    if not path.exists():
        if importlib.util.find_spec("ziglang") is None:
            raise InputError(
                f"the kernels' compiler is not installed. Run: pip install ziglang=={ZIG}"
            )
        files.write_atomic(path, lambda temporary: _compile(library, wanted, folder, temporary))
    return path


def sources() -> Path:
    """The folder of the native sources: in the installed package, or in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_backends"
    return installed if installed.is_dir() else package.parent / "backends"


def _key(library: Library, target: Target, sdk: Path | None) -> str:
    """A hash of all that goes in; nothing of it hangs on where this machine keeps things."""
    folders = ("kernels", *library.folders)
    held = [
        files.sha256_of(file)
        for folder in folders
        for file in sorted((sources() / folder).glob("*"))
    ]
    flags = (KERNEL_FLAGS, ADAPTER_FLAGS, NO_CPP_CODE, LINK_FLAGS)
    against = str(sdk) if sdk or not library.package else metadata.version(library.package)
    return files.content_hash(held, flags, vars(library), vars(target), against, ZIG)


def _compile(library: Library, target: Target, sdk: Path | None, out: Path) -> None:
    jobs = list(_jobs(library, target, sdk))
    with (
        tempfile.TemporaryDirectory() as folder,
        console.progress(f"compiling {library.file}", len(jobs) + 1, "files") as advance,
        ThreadPoolExecutor(2) as pool,
    ):
        objects = [Path(folder, f"{number}.o") for number in range(len(jobs))]
        done = pool.map(lambda job, out: zig("c++", target, *job, "-o", str(out)), jobs, objects)
        for (*_, source), _ in zip(jobs, done, strict=True):
            advance(note=Path(source).name)
        system = _c_library(target, Path(folder)) if library.folders else ()
        flags = (*target.link_flags, *library.link_flags(sdk), *system)
        zig("cc", target, *LINK_FLAGS, *map(str, objects), *flags, "-o", str(out))
        advance(note=library.file)


def _c_library(target: Target, folder: Path) -> tuple[str, ...]:
    """What links adapters with the functions that they call; a stand-in where no libc is here."""
    if target.with_libc:
        return ("-lpthread",)
    source, stub = sources() / "litert" / "android_libc.c", folder / "libc.so"
    flags = ("-ffreestanding", "-nostdlib", "-shared", "-Wl,-soname,libc.so", "-w")
    zig("cc", target, *flags, str(source), "-o", str(stub))
    return (str(stub),)


def _jobs(library: Library, target: Target, sdk: Path | None) -> Iterator[tuple[str, ...]]:
    """The arguments that compile each object, its source the last."""
    yield from kernel_jobs(target)
    flags = (*ADAPTER_FLAGS, *NO_CPP_CODE) if library.with_cpp else KERNEL_FLAGS
    for folder in library.folders:
        for adapter in sorted((sources() / folder).glob("*.cc")):
            yield (*flags, *library.compile_flags(sdk), "-c", str(adapter))


def kernel_jobs(target: Target) -> Iterator[tuple[str, ...]]:
    """Those of the kernels."""
    folder = sources() / "kernels"
    for source, kernels in (
        ("slim_attention.cc", target.kernels),
        ("layer_norm.cc", target.kernels),
        ("linear_int8.cc", target.linear),
    ):
        for kernel, flags in kernels.items():
            yield (*KERNEL_FLAGS, *flags, f"-DEP_ISA={kernel}", "-c", str(folder / source))
    for source in ("tokens.cc", "dispatch.cc"):
        yield (*KERNEL_FLAGS, "-c", str(folder / source))


def zig(language: str, target: Target, *arguments: str) -> None:
    """Run the compiler that pip installs, for a target.

    Raises:
        EdgepruneError: it refused; its words are in ``detail``.
    """
    command = (sys.executable, "-m", "ziglang", language, "-target", target.triple)
    run_compiler(command, *arguments)


def run_compiler(command: tuple[str, ...], *arguments: str) -> None:
    """Run any compiler.

    Raises:
        EdgepruneError: it refused; its words are in ``detail``.
    """
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if ended.returncode:
        first = next((line for line in ended.stderr.splitlines() if "error" in line), "no reason")
        raise EdgepruneError(f"native code does not compile: {first}", detail=ended.stderr)
