"""A wheel carries the native libraries: where it is installed, no compiler is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from edgeprune.kernels import LIBRARIES, TARGETS, host_target

ROOT = Path(__file__).parents[2]
# Lowers attention, and runs it in both runtimes.
RUNS = """
import sys
from importlib.util import find_spec
import torch
from torch.nn.functional import scaled_dot_product_attention
from edgeprune import runtime
from edgeprune.kernels import LIBRARIES, build_library
from edgeprune.lower import Lowering, lower_graph

class Attention(torch.nn.Module):
    def forward(self, x):
        split = x.unflatten(2, (2, 8)).transpose(1, 2)
        return scaled_dot_product_attention(split, split, split).transpose(1, 2).flatten(2)

assert find_spec("ziglang") is None
model, x = Attention(), torch.randn(1, 6, 16)
for name, suffix in (("executorch", ".pte"), ("litert", ".tflite")):
    lowered = lower_graph(model, (x,), Lowering(runtime=name))
    assert "edgeprune" in {row.delegate for row in lowered.delegation}
    with open("model" + suffix, "wb") as file:
        file.write(lowered.data)
    (got,) = runtime.load("model" + suffix)(x)
    torch.testing.assert_close(got, model(x), atol=1e-5, rtol=1e-5)
    with open("/proc/self/maps") as maps:
        print(next(line.split()[-1] for line in maps if f"libedgeprune_{name}" in line))
print(build_library())
"""


def run(*words: object, **settings: object) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([*map(str, words)], capture_output=True, text=True, **settings)  # type: ignore[call-overload]
    assert ended.returncode == 0, ended.stderr
    return ended


def pip(*words: object) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *words)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as `make wheel` makes it, of the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    pip("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source)
    (made,) = folder.glob("*.whl")
    return made


def test_a_wheel_carries_every_library_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    carried = {Path(name).name for name in names if name.startswith("edgeprune/_libraries/")}
    assert carried == {library.file for library in LIBRARIES.values()}
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


def test_its_name_is_true_of_the_libraries(wheel: Path) -> None:
    platform = TARGETS[host_target()].wheel_platform
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    major, minor = map(int, platform.split("_")[1:3])
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if name.endswith(".so"):
            data = archive.read(name)
            needs = {tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", data)}
            assert max(needs, default=(0, 0)) <= (major, minor), name
            # Nothing of the machine that it was made on.
            assert os.fsencode(ROOT) not in data and os.fsencode(sys.prefix) not in data, name


@pytest.mark.nightly
def test_installed_without_a_compiler_both_runtimes_call_what_it_carries(
    wheel: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # All that edgeprune needs, as it is installed here, but for the compiler.
    (packages / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text("import sys\nsys.modules['ziglang'] = None\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = run(
        *(python, "-c", RUNS),
        cwd=tmp_path,
        env=environment | {"EDGEPRUNE_CACHE": str(tmp_path / "cache")},
    )
    used = [Path(line) for line in ended.stdout.split()]
    assert [path.name for path in used] == [
        LIBRARIES[name].file for name in ("executorch", "litert", "kernels")
    ]
    assert {path.parents[1] for path in used} == {packages / "edgeprune" / "_libraries"}
    assert not (tmp_path / "cache" / "kernels").exists()
