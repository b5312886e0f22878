"""What is installed, what is missing, and the command that mends it."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeprune.cache import cache_dir
from edgeprune.errors import EdgepruneError

FREE_DISK_MB = 2000
USUAL_RUNTIME = "executorch"
PYTHONS = ((3, 11), (3, 12))
# torch first and alone: its CPU wheel.
INSTALL = "pip install torch==2.13.0 && pip install 'edgeprune[tasks]'"
INSTALL_TASKS = "pip install 'edgeprune[tasks]'"
_PIN = re.compile(r"([A-Za-z0-9_.-]+)==([^;\s]+)(?:\s*;\s*extra == ['\"](\w+)['\"])?")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        ok: whether it is as it should be.
        found: what is there.
        needed: whether no build can run without it.
        remedy: what to run or do; empty when all is well.
    """

    name: str
    ok: bool
    found: str
    needed: bool = True
    remedy: str = ""


def examine(tflite_runtime: bool = False) -> Iterator[Finding]:
    """Look at everything, quick things first; last a tiny model is lowered and run everywhere.

    Args:
        tflite_runtime: run it in LiteRT's predecessor too, which is installed for that.
    """
    findings = [_python(), _system(), *_packages(), _cores(), _cache(), _disk()]
    yield from findings
    if all(finding.ok for finding in findings if finding.needed):
        from edgeprune.lower import RUNTIMES

        for name in RUNTIMES:
            yield _runtime(name)
        if tflite_runtime:
            yield from _tflite_runtime()


def pins() -> dict[str, tuple[str, str]]:
    """Package -> (version, extra) that this edgeprune was tested with; extra "" is always needed.

    Read from the installed package, or from pyproject.toml in a checkout that is not installed.
    """
    try:
        wanted = metadata.requires("edgeprune") or []
    except metadata.PackageNotFoundError:
        file = Path(__file__).parents[1] / "pyproject.toml"
        project = tomllib.loads(file.read_text())["project"]
        extras = project["optional-dependencies"]
        wanted = project["dependencies"] + [
            f'{each}; extra == "{extra}"' for extra in extras for each in extras[extra]
        ]
    here = {"sys_platform": sys.platform, "platform_machine": platform.machine()}
    meant = (w for w in wanted if all(value in w for key, value in here.items() if key in w))
    found = [match for each in meant if (match := _PIN.match(each))]
    return {match[1]: (match[2], match[3] or "") for match in found}


def _packages() -> Iterator[Finding]:
    for package, (wanted, extra) in pins().items():
        if extra in ("", "tasks"):
            yield _package(package, wanted, extra)


def _package(package: str, wanted: str, extra: str) -> Finding:
    remedy = INSTALL_TASKS if extra else INSTALL
    try:
        # A local label, as in 2.13.0+cpu, says how it was built, not what it is.
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Finding(package, False, f"missing, wanted {wanted}", not extra, remedy)
    if found.partition("+")[0] == wanted:
        return Finding(package, True, found, not extra)
    return Finding(package, False, f"{found}, tested with {wanted}", False, remedy)


def _python() -> Finding:
    ok = sys.version_info[:2] in PYTHONS
    wanted = " or ".join(".".join(map(str, version)) for version in PYTHONS)
    remedy = "" if ok else f"make the virtual environment with Python {wanted}"
    return Finding("python", ok, platform.python_version(), remedy=remedy)


def _system() -> Finding:
    found = f"{platform.system()} {platform.machine()}"
    ok = found == "Linux x86_64"
    remedy = "" if ok else "tested on Linux x86_64 only; the README says what differs"
    return Finding("system", ok, found, needed=False, remedy=remedy)


def _cores() -> Finding:
    try:
        from edgeprune.host import cpu_model, isa_features, usable_cores
    except ImportError as error:
        return Finding("processor", False, f"cannot tell without {error.name}", False, INSTALL)
    found = f"{usable_cores()} cores, {', '.join(isa_features()) or 'no vector features known'}"
    return Finding("processor", True, f"{cpu_model()}: {found}")


def _cache() -> Finding:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Finding("cache", True, str(folder))
    except OSError as error:
        found = f"{folder} cannot be written ({error.strerror})"
        return Finding("cache", False, found, remedy="export EDGEPRUNE_CACHE=<a folder of yours>")


def _disk() -> Finding:
    """Free space in the cache and here, where the build folder goes."""
    folders = [next(p for p in (cache_dir(), *cache_dir().parents) if p.exists()), Path.cwd()]
    free_mb = min(shutil.disk_usage(folder).free for folder in folders) // 10**6
    ok = free_mb >= FREE_DISK_MB
    found = f"{free_mb / 1000:.1f} GB free"
    remedy = "" if ok else f"free {FREE_DISK_MB / 1000:.0f} GB for weights, data and builds"
    return Finding("disk", ok, found, needed=False, remedy=remedy)


def _runtime(name: str) -> Finding:
    """A linear layer through the whole chain: lowered, loaded in a worker process, run."""
    needed = name == USUAL_RUNTIME
    try:
        return Finding(f"runtime {name}", True, _lower_and_run(name), needed)
    except (EdgepruneError, ImportError, OSError) as error:
        found = str(error).splitlines()[0]
        return Finding(f"runtime {name}", False, found, needed, INSTALL if needed else "")


def _lower_and_run(runtime: str) -> str:
    import torch

    from edgeprune.devices import connect
    from edgeprune.lower import Lowering, lower_graph

    layer, example = torch.nn.Linear(8, 4).eval(), torch.ones(1, 8)
    with tempfile.TemporaryDirectory() as folder, connect("local") as device:
        lowering = Lowering(runtime=runtime)
        path = Path(folder, f"tiny{lowering.suffix}")
        path.write_bytes(lower_graph(layer, (example,), lowering).data)
        with device.predictor(path) as predict, torch.no_grad():
            answer = predict((example,))
            error = float((answer - layer(example)).abs().max())  # type: ignore[operator]
    if error > 1e-5:
        raise EdgepruneError(f"a lowered linear layer is off by {error:.2g}")
    return "lowered and ran a linear layer with XNNPACK"


def _tflite_runtime() -> Iterator[Finding]:
    """A linear layer in tflite-runtime, whose last release errs in silence on int8 files."""
    import torch

    from edgeprune.devices.tflite_runtime import VERSION, run_in_tflite_runtime
    from edgeprune.lower import Lowering, lower_graph

    generator = torch.Generator().manual_seed(0)
    layer, examples = torch.nn.Linear(64, 16).eval(), torch.randn(8, 64, generator=generator)
    # Rows of different sizes, as every real layer has: a scale each.
    layer.weight.data = (
        torch.randn(16, 64, generator=generator) * torch.logspace(-1, 1, 16)[:, None]
    )
    for precision in ("fp32", "int8"):
        name = f"tflite-runtime {precision}"
        try:
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                path = Path(folder, "tiny.tflite")
                how = Lowering(precision, "litert", "off")  # type: ignore[arg-type]
                path.write_bytes(lower_graph(layer, (examples[:1],), how).data)
                (got,) = run_in_tflite_runtime(path, (examples,))
                cosine = float(torch.cosine_similarity(got, layer(examples)).min())
        except (EdgepruneError, ImportError, OSError) as error:
            yield Finding(name, False, str(error).splitlines()[0], needed=False)
            continue
        if cosine >= 0.99:
            yield Finding(name, True, f"{VERSION} runs {precision} files right", needed=False)
        else:
            found = f"{VERSION} runs {precision} files WRONG without a word (cosine {cosine:.2f})"
            remedy = "for apps with tflite-runtime lower with --precision fp32, or ship LiteRT"
            yield Finding(name, False, found, False, remedy)
