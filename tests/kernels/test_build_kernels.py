"""Kernels compile for every target, once, and say what is missing."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import edgeprune

from edgeprune.doctor import pins
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.kernels import LIBRARIES, TARGETS, build, build_library
from edgeprune.kernels.libraries import Library
from edgeprune.kernels.load import BACKEND

MACHINES = {"x86_64": 62, "aarch64": 183}


@pytest.mark.parametrize("name", ["kernels", "litert"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_compiles_to_its_machine_and_only_once(target: str, name: str) -> None:
    library = build_library(name, target)
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack("<H", header[18:20])[0] == MACHINES[target.split("-")[0]]
    written = library.stat().st_mtime_ns
    assert build_library(name, target) == library
    assert library.stat().st_mtime_ns == written


def test_android_s_kernels_need_no_other_library_and_the_delegate_one() -> None:
    kernels, delegate = (
        build_library(name, "aarch64-android").read_bytes() for name in ("kernels", "litert")
    )
    assert b"libc.so" not in kernels and b"libc.so\0" in delegate
    for text in (kernels, delegate):
        assert b"libm.so" not in text and b"libc++" not in text and b"libpthread" not in text


def test_an_unknown_target_is_answered_with_the_nearest() -> None:
    ended = edgeprune("kernels", "build", "--target", "arch64-linux")
    assert ended.exit_code == 2
    assert "there is no target 'arch64-linux'. Did you mean aarch64-linux?" in ended.message


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor anything that it has made."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_compiler")
def test_a_missing_compiler_comes_with_the_command_that_installs_it() -> None:
    with pytest.raises(InputError, match=f"pip install ziglang=={pins()['ziglang'][0]}$"):
        build_library()


def test_a_carried_library_is_taken_if_it_was_built_of_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = {name: build_library(name) for name in LIBRARIES}
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    carried = tmp_path / "carried"
    monkeypatch.setattr(build, "CARRIED", carried)
    monkeypatch.setattr(build, "_compile", lambda *words: words[-1].write_bytes(b"compiled"))
    for name, path in built.items():
        place = carried / path.parent.name / path.name
        place.parent.mkdir(parents=True)
        place.write_bytes(b"carried")
        assert build_library(name) == place
    monkeypatch.setattr(build.metadata, "version", lambda package: "another")
    assert build_library("executorch").read_bytes() == b"compiled"
    assert build_library("litert").read_bytes() == b"carried"
    monkeypatch.setattr(build, "LINK_FLAGS", (*build.LINK_FLAGS, "-Wl,-O1"))
    assert build_library("litert").read_bytes() == b"compiled"


def test_what_a_library_is_called_does_not_hang_on_where_the_runtime_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_library("executorch")
    monkeypatch.setattr(Library, "sdk", lambda self, target, given: tmp_path)
    assert build_library("executorch") == before
    assert str(Path(sys.prefix)).encode() not in before.read_bytes()


def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(build.sources(), sources)
    (sources / "kernels" / "dispatch.cc").write_text("int broken(")
    monkeypatch.setattr(build, "sources", lambda: sources)
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EdgepruneError, match="native code does not compile: .*error: expected"):
        build_library("kernels", "aarch64-android")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.nightly
def test_apps_in_c_plus_plus_build_the_same_library_with_cmake(tmp_path: Path) -> None:
    folder = find_spec("executorch").submodule_search_locations[0]  # type: ignore[union-attr, index]
    cmake = Path(sys.executable).parent / "cmake"
    where = ("-S", str(build.sources() / "executorch"), "-B", str(tmp_path))
    wheel = f"-Dexecutorch_DIR={folder}/lib/cmake/executorch"
    for arguments in ((*where, wheel), ("--build", str(tmp_path), "--parallel", "2")):
        subprocess.run([str(cmake), *arguments], check=True, capture_output=True)
    script = (
        "import ctypes\n"
        "from executorch.extension.pybindings import _C\n"
        f"ctypes.CDLL({str(tmp_path / 'libedgeprune_executorch.so')!r})\n"
        "print(*_C._get_registered_backend_names())\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert BACKEND in ended.stdout.split()
