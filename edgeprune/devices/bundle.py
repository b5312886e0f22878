"""The native runner for a device, with the runtimes' libraries and our delegates: needs no Python.

ExecuTorch and LiteRT come out of the wheels for that machine, of the versions installed here.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeprune import console, files
from edgeprune.cache import cache_dir
from edgeprune.errors import InputError
from edgeprune.kernels.build import (
    ADAPTER_FLAGS,
    KERNEL_FLAGS,
    LINK_FLAGS,
    ZIG,
    build_library,
    sources,
    zig,
)
from edgeprune.kernels.libraries import LIBRARIES
from edgeprune.kernels.targets import Target, host_target, target_named

DOWNLOAD_LIMIT_S = 1800.0
PROGRAM = "runner"
# The operators and XNNPACK register themselves when they are loaded: nothing names them.
_EXECUTORCH = (
    *("libexecutorch.so", "libexecutorch_kernels_optimized.so"),
    *("libexecutorch_kernels_quantized.so", "libexecutorch_backend_xnnpack.so"),
    "libexecutorch_threadpool.so",
)
_DELEGATES = {name: LIBRARIES[name].file for name in ("executorch", "litert")}
_LITERT = "libLiteRt.so"
# Wheels are tagged by the oldest C library that they run with; ours may be as new as zig's target.
_GLIBC = ("2_28", "2_27", "2_17")


@dataclass(frozen=True)
class Bundle:
    """A folder that runs lowered files on a machine of its target.

    Attributes:
        versions: of the packages that its libraries are of.
    """

    folder: Path
    target: str
    versions: dict[str, str]

    @property
    def program(self) -> Path:
        """The runner. It looks for ExecuTorch's libraries beside itself."""
        return self.folder / PROGRAM

    @property
    def libraries(self) -> tuple[Path, ...]:
        """All that must lie beside the runner."""
        return tuple(sorted(self.folder.glob("lib*.so")))

    def loaded_for(self, runtime: str, delegate: bool = True) -> tuple[Path, ...]:
        """Those that a job names.

        Args:
            runtime: the runner's name for it.
            delegate: whether the file calls our delegate.
        """
        names = [_LITERT] if runtime == "litert" else []
        names += [_DELEGATES[runtime]] if delegate else []
        return tuple(self.folder / name for name in names)


def find_bundle(target: str) -> Bundle:
    """The bundle for a target; made if the cache does not have it, which downloads the wheels.

    Raises:
        InputError: no such target, one that it cannot be made for here, or no wheels.
        EdgepruneError: the compiler refused; its words are in ``detail``.
    """
    wanted = target_named(target)
    if not wanted.with_libc:
        raise InputError(
            f"a runner for {target} is compiled with Android's NDK: docs/runner.md says how. Or "
            "give a program of the runtime's own: --runner benchmark_model"
        )
    versions = {name: metadata.version(name) for name in ("executorch", "ai-edge-litert")}
    folder = cache_dir() / "bundles" / f"{target}-{_key(wanted, versions)}"
    if not (folder / "bundle.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            _make(Path(aside, "bundle"), target, wanted, versions)
            if not folder.exists():  # another process was as fast
                Path(aside, "bundle").rename(folder)
    return read_bundle(folder)


def read_bundle(folder: Path) -> Bundle:
    """A bundle's folder, here or copied from elsewhere.

    Raises:
        InputError: it is none.
    """
    body = files.read_json(folder / "bundle.json", "bundle")
    return Bundle(folder, body["target"], body["versions"])


def write_bundle(bundle: Bundle, out: Path) -> Bundle:
    """A copy of it.

    Raises:
        InputError: the folder exists and has other files in it, or cannot be written.
    """
    known = {path.name for path in bundle.folder.iterdir()}
    strange = [path.name for path in out.glob("*") if path.name not in known]
    if strange:
        raise InputError(f"{out}: has files of its own: {strange[0]}. Choose another --out.")
    try:
        shutil.copytree(bundle.folder, out, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise InputError(f"{out}: cannot be written ({error}). Choose another --out.") from error
    return read_bundle(out)


def sdk(package: str, target: str) -> Path:
    """A package as its wheel for the target has it; the installed one, for this machine.

    Raises:
        InputError: there is no such wheel, or it cannot be had.
    """
    if target == host_target():
        found = importlib.util.find_spec(package.replace("-", "_"))
        assert found and found.submodule_search_locations
        return Path(found.submodule_search_locations[0])
    version = metadata.version(package)
    folder = cache_dir() / "sdk" / f"{package}-{version}-{target}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            _download(package, version, target_named(target), Path(aside))
            if not folder.exists():
                Path(aside, "unpacked").rename(folder)
    return folder / package.replace("-", "_")


def _make(folder: Path, target: str, wanted: Target, versions: dict[str, str]) -> None:
    executorch, litert = sdk("executorch", target), sdk("ai-edge-litert", target)
    given = {"executorch": None if target == host_target() else executorch, "litert": None}
    ours = [build_library(name, target, given[name]) for name in _DELEGATES]
    folder.mkdir()
    _compile(wanted, executorch, folder / PROGRAM)
    for library in (*(executorch / "lib" / name for name in _EXECUTORCH), litert / _LITERT, *ours):
        shutil.copyfile(library, folder / library.name)
    body: dict[str, Any] = {
        "target": target,
        "versions": versions,
        "sha256": {path.name: files.sha256_of(path) for path in sorted(folder.iterdir())},
    }
    files.write_json(folder / "bundle.json", "bundle", body)


def _compile(target: Target, executorch: Path, out: Path) -> None:
    held = sorted((sources() / "runner").glob("*.cc"))
    flags = (*ADAPTER_FLAGS, *LIBRARIES["executorch"].compile_flags(executorch), "-c")
    with (
        tempfile.TemporaryDirectory() as folder,
        console.progress("compiling the runner", len(held) + 1, "files") as advance,
        ThreadPoolExecutor(2) as pool,
    ):
        objects = [str(Path(folder, f"{source.stem}.o")) for source in held]
        jobs = zip(map(str, held), objects, strict=True)
        done = pool.map(lambda job: zig("c++", target, *flags, job[0], "-o", job[1]), jobs)
        for source, _ in zip(held, done, strict=True):
            advance(note=source.name)
        zig("c++", target, *objects, *_link_flags(executorch), "-o", str(out))
        advance(note=PROGRAM)


def _link_flags(executorch: Path) -> tuple[str, ...]:
    linked = tuple(f"-l:{name}" for name in _EXECUTORCH)
    return (
        *(f"-L{executorch}/lib", "-Wl,--no-as-needed", *linked, "-Wl,--as-needed", "-ldl"),
        *("-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined", "-Wl,-s"),
    )


def _download(package: str, version: str, target: Target, folder: Path) -> None:
    machine = target.triple.partition("-")[0]
    platforms = (flag for each in _GLIBC for flag in ("--platform", f"manylinux_{each}_{machine}"))
    words = (
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", *platforms, "--dest", str(folder)),
        f"{package}=={version.partition('+')[0]}",
    )
    with console.progress(f"downloading {package} {version} for {machine}", 1) as advance:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S)
        advance()
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"{package} {version} for {machine} cannot be downloaded: {reason[:300]}",
            detail=ended.stderr,
        )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        held.extractall(folder / "unpacked", [name for name in held.namelist() if _is_native(name)])


def _is_native(name: str) -> bool:
    """Of a wheel's files, a fifth: the rest is Python."""
    return name.split("/")[1] in ("include", "lib", _LITERT)


def _key(target: Target, versions: dict[str, str]) -> str:
    """A hash of all that goes in."""
    folders = ("kernels", "region", "executorch", "litert", "runner")
    held = [
        files.sha256_of(file)
        for folder in folders
        for file in sorted((sources() / folder).glob("*"))
    ]
    flags = (KERNEL_FLAGS, ADAPTER_FLAGS, LINK_FLAGS)
    return files.content_hash(held, flags, vars(target), versions, ZIG)
