"""Tests of our users: on this machine, with a budget, properties and a stored baseline."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from edgeprune.lower import Lowering, lower_graph

pytest_plugins = ("pytester",)

RUN = "runs=6, seconds=0"
HEAD = """
import pytest, torch
INPUTS = (torch.zeros(1, 4),)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pte"
    lowered = lower_graph(nn.Linear(4, 4).eval(), (torch.zeros(1, 4),), Lowering(delegate="off"))
    path.write_bytes(lowered.data)
    return path


@pytest.fixture
def run(pytester: pytest.Pytester, model: Path) -> Callable[..., pytest.RunResult]:
    """Run a test file with the plugin, as it is registered for users."""

    def run(tests: str, *words: str) -> pytest.RunResult:
        pytester.makepyfile(HEAD + tests.replace("MODEL", repr(str(model))).replace("RUN", RUN))
        # Also where an installed edgeprune registers it already.
        plugin = ("-p", "no:edgeprune", "-p", "edgeprune.pytest_plugin", "-p", "no:xdist")
        return pytester.runpytest_inprocess(*plugin, *words)

    return run


def test_a_test_is_held_to_its_budget(run: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    ended = run(
        """
@pytest.mark.on_device(budget="latency=1s,memory=1GB,size=1MB")
def test_within(edge_device):
    found = edge_device.measure(MODEL, INPUTS, RUN)
    assert len(found.samples_ms) == 6 and found.peak_memory_mb is not None

@pytest.mark.on_device(budget="latency.p90=0.001us")
def test_over(edge_device):
    edge_device.measure(MODEL, INPUTS, RUN)

@pytest.mark.on_device(budget="latency=60%")
def test_of_nothing(edge_device):
    pass

@pytest.mark.on_device(budget="latency=1s")
def test_idle(edge_device):
    pass

@pytest.mark.on_device(limit="latency=1s")
def test_misspelt(edge_device):
    pass
""",
        f"--junitxml={tmp_path / 'junit.xml'}",
    )
    ended.assert_outcomes(passed=1, failed=2, errors=2)
    ended.stdout.fnmatch_lines_random(
        [
            "model.pte: over budget: latency_ms: got *, wanted 1e-06 (p90, measured*",
            '*budget "latency=60%": only a file is measured here*',
            "marked on_device, but nothing was measured with edge_device",
            "on_device: got 'limit', wanted budget, device, threads, regression=*",
        ]
    )
    tree = ElementTree.parse(tmp_path / "junit.xml")
    told = {each.get("name"): each.get("value") for each in tree.iter("property")}
    assert float(told["model.pte.p50_ms"] or 0) > 0
    assert (told["model.pte.device"] or "").startswith("local: ")


BASELINE = """
def test_speed(edge_device):
    edge_device.measure(MODEL, INPUTS, RUN)
"""


@pytest.mark.nightly
def test_a_stored_baseline_fails_what_became_slower(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    words = ("--edgeprune-baseline", "speed.json")
    marked = f"@pytest.mark.on_device(regression=1000)\n{BASELINE}"
    ended = run(marked, *words)
    ended.assert_outcomes(failed=1)
    run(marked, *words, "--edgeprune-store").assert_outcomes(passed=1)
    run(marked, *words).assert_outcomes(passed=1)
    path = pytester.path / "speed.json"
    held = json.loads(path.read_text())
    ((entry,),) = (each.values() for each in held["medians"].values())
    entry["p50_ms"] /= 1e6
    path.write_text(json.dumps(held))
    ended = run(marked, *words)
    ended.assert_outcomes(failed=1)
    ended.stdout.fnmatch_lines(["*regression: median * ms (95%: from *), baseline *"])


def test_an_emulators_times_are_skipped(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(
        """
from dataclasses import replace
from edgeprune.devices import DRIVERS, LocalDevice

class Emulated(LocalDevice):
    def state(self):
        return replace(super().state(), facts={"emulated": "by qemu"})

DRIVERS["emulated"] = lambda address, threads, cpu: Emulated(threads, cpu)
"""
    )
    ended = run(
        f'@pytest.mark.on_device(budget="latency=0.001us")\n{BASELINE}',
        "-rs",
        "--edgeprune-device=emulated",
    )
    ended.assert_outcomes(skipped=1)
    ended.stdout.fnmatch_lines(["*emulated: not a latency*"])


def test_an_installed_edgeprune_brings_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (name,) = project["project"]["entry-points"]["pytest11"].values()
    assert hasattr(import_module(name), "pytest_addoption")
