"""The native runner for a device, with the runtimes' libraries and our delegates: needs no Python.

For Linux, ExecuTorch and LiteRT come out of the wheels for that machine, of the versions installed
here. For Android, LiteRT comes out of its AAR, and the user has that.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeprune import files
from edgeprune.cache import cache_dir
from edgeprune.devices.runner_build import EXECUTORCH, compile_for_android, compile_for_linux
from edgeprune.devices.wheels import LITERT, sdk
from edgeprune.errors import InputError
from edgeprune.kernels.build import (
    ADAPTER_FLAGS,
    KERNEL_FLAGS,
    LINK_FLAGS,
    NO_CPP_CODE,
    ZIG,
    build_library,
    sources,
)
from edgeprune.kernels.libraries import LIBRARIES
from edgeprune.kernels.targets import Target, host_target, target_named

PROGRAM = "runner"
_DELEGATES = {name: LIBRARIES[name].file for name in ("executorch", "litert")}


@dataclass(frozen=True)
class Bundle:
    """A folder that runs lowered files on a machine of its target.

    Attributes:
        runtimes: by the runner's name, the libraries that a job for it names besides our delegate.
        versions: of the packages that its libraries are of.
    """

    folder: Path
    target: str
    runtimes: dict[str, tuple[str, ...]]
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

        Raises:
            InputError: this bundle is without that runtime.
        """
        if runtime not in self.runtimes:
            raise InputError(
                f"{self.folder}: a bundle for {' and '.join(self.runtimes)}, without {runtime}. "
                "Lower with --runtime litert, or see docs/runner.md."
            )
        names = (*self.runtimes[runtime], *((_DELEGATES[runtime],) if delegate else ()))
        return tuple(self.folder / name for name in names)


def find_bundle(target: str, litert: Path | None = None) -> Bundle:
    """The bundle for a target; made if the cache does not have it, which downloads the wheels.

    Args:
        litert: LiteRT's library for Android.

    Raises:
        InputError: no such target, no wheels, or for Android no NDK or no LiteRT.
        EdgepruneError: a compiler refused; its words are in ``detail``.
    """
    wanted = target_named(target)
    if wanted.with_libc:
        versions = {name: metadata.version(name) for name in ("executorch", "ai-edge-litert")}
    elif litert is None or not litert.is_file():
        got = "none was given" if litert is None else f"{litert} is no file"
        raise InputError(
            f"a bundle for {target} needs LiteRT's library: {got}. Take libLiteRt.so out of its "
            "AAR: edgeprune bundle --litert FILE (docs/runner.md)"
        )
    else:
        versions = {"litert": files.sha256_of(litert)[:12]}
    folder = cache_dir() / "bundles" / f"{target}-{_key(wanted, versions)}"
    if not (folder / "bundle.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            new = Path(aside, "bundle")
            new.mkdir()
            runtimes = (
                _fill_for_android(new, target, litert)
                if litert and not wanted.with_libc
                else _fill_for_linux(new, target)
            )
            _seal(new, target, runtimes, versions)
            if not folder.exists():  # another process was as fast
                new.rename(folder)
    return read_bundle(folder)


def read_bundle(folder: Path) -> Bundle:
    """A bundle's folder, here or copied from elsewhere.

    Raises:
        InputError: it is none.
    """
    body = files.read_json(folder / "bundle.json", "bundle")
    runtimes = {name: tuple(libraries) for name, libraries in body["runtimes"].items()}
    return Bundle(folder, body["target"], runtimes, body["versions"])


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


def _fill_for_linux(folder: Path, target: str) -> dict[str, tuple[str, ...]]:
    executorch, litert = sdk("executorch", target), sdk("ai-edge-litert", target)
    ours = (
        build_library("executorch", target, None if target == host_target() else executorch),
        build_library("litert", target),
    )
    compile_for_linux(target_named(target), executorch, folder / PROGRAM)
    _copy((*(executorch / "lib" / name for name in EXECUTORCH), litert / LITERT, *ours), folder)
    return {"executorch": (), "litert": (LITERT,)}


def _fill_for_android(folder: Path, target: str, litert: Path) -> dict[str, tuple[str, ...]]:
    compile_for_android(folder / PROGRAM)
    _copy((litert, build_library("litert", target)), folder)
    return {"litert": (litert.name,)}


def _copy(libraries: Iterable[Path], folder: Path) -> None:
    for library in libraries:
        shutil.copyfile(library, folder / library.name)


def _seal(
    folder: Path, target: str, runtimes: dict[str, tuple[str, ...]], versions: dict[str, str]
) -> None:
    held = {path.name: files.sha256_of(path) for path in sorted(folder.iterdir())}
    body = {"target": target, "runtimes": runtimes, "versions": versions, "sha256": held}
    files.write_json(folder / "bundle.json", "bundle", body)


def _key(target: Target, versions: dict[str, str]) -> str:
    """A hash of all that goes in."""
    folders = ("kernels", "region", "executorch", "litert", "runner")
    held = [
        files.sha256_of(file)
        for folder in folders
        for file in sorted((sources() / folder).glob("*"))
    ]
    flags = (KERNEL_FLAGS, ADAPTER_FLAGS, NO_CPP_CODE, LINK_FLAGS)
    return files.content_hash(held, flags, vars(target), versions, ZIG)
