"""The runner without Python gives what the Python runtime gives, and says what is wrong."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pytest
from models import inputs, model
from native_programs import compiled_runner, host_compiler

from edgeprune.devices import connect
from edgeprune.kernels import build_library
from edgeprune.lower import Lowering, lower_graph

Command = tuple[str, ...]


@pytest.fixture(scope="module")
def runner() -> Command:
    compiler, package = host_compiler(), importlib.util.find_spec("executorch")
    if compiler is None:
        pytest.skip("no C++ compiler for this machine: apt-get install g++")
    assert package and package.submodule_search_locations
    made = compiled_runner((compiler,), Path(package.submodule_search_locations[0]))
    return (str(made), "--library", str(build_library("executorch")))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runner") / "model.pte"
    lowered = lower_graph(
        model("vit"), inputs("vit", batch=1), Lowering("int8", isa=("avx512_vnni",))
    )
    path.write_bytes(lowered.data)
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True)


def test_outputs_are_those_of_the_python_runtime(
    runner: Command, file: Path, tmp_path: Path
) -> None:
    (pixels,) = inputs("vit", batch=1)
    (tmp_path / "pixels").write_bytes(pixels.numpy().tobytes())
    with connect("local") as device, device.predictor(file) as predict:
        wanted = predict((pixels,)).numpy()
    ended = run(*runner, file, tmp_path, tmp_path / "pixels")
    assert ended.returncode == 0, ended.stderr
    assert f"0 Float [{', '.join(map(str, wanted.shape))}]" in ended.stdout
    got = np.frombuffer((tmp_path / "0").read_bytes(), np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def test_a_library_is_loaded_before_the_model(runner: Command, file: Path, tmp_path: Path) -> None:
    ended = run(*runner, "--library", tmp_path / "libnone.so", file, tmp_path)
    assert ended.returncode == 1
    assert "libnone.so: cannot open shared object file" in ended.stderr


def test_what_does_not_fit_the_model_is_named(runner: Command, file: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"1234")
    for words, problem in (
        ((file, tmp_path), "takes 1 inputs, got 0"),
        ((file, tmp_path, tmp_path / "short"), "got 4 bytes, wanted 1024"),
        ((file, tmp_path, tmp_path / "absent"), "absent: No such file"),
        ((tmp_path / "short", tmp_path), "short: Error::"),
    ):
        ended = run(*runner, *words)
        assert ended.returncode == 1
        assert problem in ended.stderr.splitlines()[-1]
    assert run(runner[0]).returncode == 2
