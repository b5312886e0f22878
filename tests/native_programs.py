"""Native tests, compiled: the programs and fuzz harnesses of tests/native, by any compiler.

A program is linked with the kernels, compiled as `edgeprune kernels build` compiles them but for
what a toolchain adds, such as sanitizers.
"""

from __future__ import annotations

import ctypes
import fcntl
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeprune import files
from edgeprune.cache import cache_dir
from edgeprune.kernels.build import kernel_jobs
from edgeprune.kernels.libraries import LIBRARIES
from edgeprune.kernels.linear import linear_kernel_named
from edgeprune.kernels.targets import TARGETS, Target, host_target

NATIVE = Path(__file__).parent / "native"
BACKENDS = NATIVE.parents[1] / "backends"
# With the delegate's sources, each compiled alone: they declare their part of the C library.
LITERT_PROGRAMS = ("fuzz_litert", "threads")
# With the delegate and the runtime of the installed wheel, which is for this machine only.
EXECUTORCH_PROGRAMS = ("fuzz_executorch",)
HARNESSES = sorted(path.stem for path in NATIVE.glob("fuzz_*.cc") if path.stem != "fuzz_main")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")


@dataclass(frozen=True)
class Toolchain:
    """A compiler and what it adds.

    Attributes:
        command: the compiler, and flags of every file.
        target: what the kernels are compiled for.
        kernel_flags: of the kernels only, after their own.
        link_flags: of programs.
        fuzzer: whether ``link_flags`` bring a fuzzer, which then has the main function.
    """

    command: tuple[str, ...]
    target: Target
    kernel_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()
    fuzzer: bool = False


def host_compiler() -> str | None:
    """A C++ compiler of this machine."""
    return shutil.which("g++") or shutil.which("clang++")


def sanitized(compiler: str) -> Toolchain:
    """For this machine, watched by AddressSanitizer and UBSan.

    Without optimisation beyond -O1: with -O3, g++ takes 19 s for a kernel, not 3.
    """
    # Vectors are handed over within a file only: how is nobody else's business.
    flags = ("-g1", "-Wno-psabi", "-fsanitize=address", *UNDEFINED)
    return Toolchain((compiler, *flags), TARGETS[host_target()], ("-O1",), ("-O1",))


def race_detecting(compiler: str) -> Toolchain:
    """For this machine, watched by ThreadSanitizer, which no other sanitizer may stand beside."""
    flags = ("-g1", "-Wno-psabi", "-fsanitize=thread")
    return Toolchain((compiler, *flags), TARGETS[host_target()], ("-O1",), ("-O1", "-pthread"))


def fuzzing(clang: str) -> Toolchain:
    """For this machine, with libFuzzer, AddressSanitizer and UBSan."""
    base = sanitized(clang)
    return Toolchain(
        (*base.command, "-fsanitize=fuzzer-no-link"),
        base.target,
        base.kernel_flags,
        (*base.link_flags, "-fsanitize=fuzzer"),
        fuzzer=True,
    )


def arm(*flags: str) -> Toolchain:
    """For 64-bit Arm, the kernels as production has them but for ``flags``.

    Linked as the runner is: zig's C++ library, compiled for each target, takes a minute.
    """
    target = TARGETS["aarch64-linux"]
    return Toolchain((*zig(target.triple), *flags), target, (), ("-O2",))


def zig(triple: str) -> tuple[str, ...]:
    """The compiler that pip installs, for a machine."""
    return (sys.executable, "-m", "ziglang", "c++", "-target", triple)


def compiled(program: str, toolchain: Toolchain) -> Path:
    """``kernels_test``, ``threads`` or a harness, compiled if it is not in the cache yet."""
    objects = [_object(job, toolchain) for job in kernel_jobs(toolchain.target)]
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{BACKENDS}")
    shared = (BACKENDS / "kernels" / "reference.cc", BACKENDS / "region" / "region.cc")
    inputs = [*_sources_of(program, toolchain), *shared, *objects]
    if program in EXECUTORCH_PROGRAMS:
        library = LIBRARIES["executorch"]
        sdk = library.sdk(host_target(), None)
        links = (f"-l{name}" for name in library.links)
        flags += (*library.compile_flags(sdk), f"-L{sdk}/lib", f"-Wl,-rpath,{sdk}/lib")
        flags += ("-Wl,--no-as-needed", *links)
    return _made((*flags, *toolchain.link_flags, *map(str, inputs)), toolchain.command)


def reference() -> ctypes.CDLL:
    """The kernels' reference, as a library of this machine."""
    # Without -O, zig compiles a runtime for debugging first: 20 s, not 5.
    flags = ("-O1", "-shared", "-fPIC", "-nostdlib++", "-lm")
    compiler = zig(TARGETS[host_target()].triple)
    return ctypes.CDLL(str(_made((*flags, str(BACKENDS / "kernels" / "reference.cc")), compiler)))


def kernels_of(target: Target) -> dict[str, tuple[str, ...]]:
    """``family:kernel`` -> its flags, of every kernel that is compiled for the target."""
    found = {}
    for *flags, source in kernel_jobs(target):
        for flag in flags:
            if flag.startswith("-DEP_ISA="):
                found[f"{Path(source).stem}:{flag.removeprefix('-DEP_ISA=')}"] = tuple(flags)
    return found


def run_kernels_test(
    command: list[str], target: Target, cases: int, features: set[str]
) -> dict[str, str]:
    """What kernels_test says of each ``family:kernel``; fails where one is wrong or not run.

    Args:
        command: that runs the program.
        features: instruction sets of the processor, as compilers name them, without ``_``.
    """
    kernels = kernels_of(target)
    ended = subprocess.run(
        [*command, str(cases), *kernels], capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    said = [line.split(": ") for line in ended.stdout.splitlines()]
    results = {":".join(name.split()): result for name, result in said}
    assert results.keys() == kernels.keys()
    for name, flags in kernels.items():
        runs = "worst error" in results[name]
        assert runs == (_needs(flags) <= features), f"{name}: {results[name]}"
    return results


def _needs(flags: tuple[str, ...]) -> set[str]:
    """Of a processor: from -mavx2 for x86, -mcpu=generic+dotprod for Arm."""
    needs = set()
    for flag in flags:
        if re.match(r"-m(cpu|arch)=", flag):
            needs |= set(flag.split("+")[1:])
        elif flag.startswith("-m"):
            needs.add(flag.removeprefix("-m"))
    return needs


def _sources_of(program: str, toolchain: Toolchain) -> Iterator[Path]:
    if program == "kernels_test":
        yield from sorted(NATIVE.glob("*_test.cc"))
        return
    yield NATIVE / f"{program}.cc"
    if program in LITERT_PROGRAMS:
        yield from sorted((BACKENDS / "litert").glob("*.cc"))
    if program in EXECUTORCH_PROGRAMS:
        yield BACKENDS / "executorch" / "delegate.cc"
    if program in HARNESSES and not toolchain.fuzzer:
        yield NATIVE / "fuzz_main.cc"


def _object(job: tuple[str, ...], toolchain: Toolchain) -> Path:
    *flags, source = job
    if toolchain.command[0].endswith("g++"):
        # g++ does not know the pragmas that forbid contraction here and there: it gets none.
        flags = [flag for flag in flags if not flag.startswith("-ffp-contract=")]
        flags += ["-ffp-contract=off", "-Wno-unknown-pragmas"]
    return _made((*flags, *toolchain.kernel_flags, source), toolchain.command)


def _made(arguments: tuple[str, ...], command: tuple[str, ...]) -> Path:
    """The output of one compiler run, under a hash of all that goes into it."""
    folders = (BACKENDS / "kernels",) if "-c" in arguments else (BACKENDS, NATIVE)
    read = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
    held = [(str(file), files.sha256_of(file)) for file in read]
    key = files.content_hash(held, command, arguments)
    path = cache_dir() / "native" / (f"{key}.o" if "-c" in arguments else key)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two test processes want the same files at once.
    with (path.parent / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if not path.exists():
            whole = [*command, *arguments, "-o"]
            files.write_atomic(path, lambda temporary: _run([*whole, str(temporary)]))
            path.chmod(0o755)
    return path


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stderr}"


def linears_win() -> bool:
    """Whether LiteRT's delegate takes int8 linear layers on this machine."""
    return bool(linear_kernel_named(None).name == b"avx512vnni")
