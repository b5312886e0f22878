"""A pytest plugin: tests that measure on a device, with a budget and a stored baseline.

pytest imports it in every project of an environment that has edgeprune, so it imports nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgeprune.budget import AbsoluteBudget
    from edgeprune.devices import Device, Measurement
    from edgeprune.task import Batch

FIXTURE = "edge_device"
MARKER = (
    "on_device(budget=None, device=None, threads=1, regression=0.1): measures on a device; "
    'budget as in "latency=12ms", regression: the share by which a median may exceed its baseline'
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The device, and the file of baselines; each also a key of pytest's own configuration."""
    group = parser.getgroup("edgeprune", "measuring on a device")
    parser.addini("edgeprune_device", "where marked tests measure", default="local")
    parser.addini("edgeprune_baseline", "file of stored medians, relative to the rootdir")
    group.addoption("--edgeprune-device", metavar="NAME", help="as of edgeprune measure")
    group.addoption("--edgeprune-baseline", metavar="FILE", help="fail on regression against it")
    group.addoption(
        "--edgeprune-store", action="store_true", help="store what is measured as the baseline"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker."""
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A marked test that measures nothing has shown nothing: it fails."""
    result = yield
    if pyfuncitem.get_closest_marker("on_device"):
        device = pyfuncitem.funcargs.get(FIXTURE)
        if not isinstance(device, MeasuringDevice) or not device.measured:
            pytest.fail(f"marked on_device, but nothing was measured with {FIXTURE}", pytrace=False)
    return result


@pytest.fixture
def edge_device(request: pytest.FixtureRequest, record_property: Any) -> Iterator[MeasuringDevice]:
    """The device of the command line, the marker or the configuration, open.

    What it measures is judged at once.
    """
    from edgeprune.devices import connect

    config, asked = request.config, _asked(request.node)
    if hasattr(config, "workerinput"):
        pytest.fail("tests in parallel disturb each other's times: run with -n 0", pytrace=False)
    given = config.getoption("edgeprune_device")
    name = given or asked["device"] or config.getini("edgeprune_device")
    with connect(name, threads=asked["threads"]) as device:
        baseline = Baseline.of(config)
        yield MeasuringDevice(device, request.node.nodeid, asked, baseline, record_property)


def _asked(node: pytest.Item) -> dict[str, Any]:
    given: dict[str, Any] = {"budget": None, "device": None, "threads": 1, "regression": 0.1}
    marker = node.get_closest_marker("on_device")
    if marker is None:
        return given
    unknown = [*marker.args, *(name for name in marker.kwargs if name not in given)]
    if unknown:
        pytest.fail(f"on_device: got {unknown[0]!r}, wanted {', '.join(given)}=…", pytrace=False)
    return given | dict(marker.kwargs)


class MeasuringDevice:
    """A device whose ``measure`` fails the test over budget or on regression.

    Attributes:
        device: as ``edgeprune.connect`` opened it, for all else.
        measured: what was measured, in order.
    """

    def __init__(
        self,
        device: Device,
        test: str,
        asked: dict[str, Any],
        baseline: Baseline | None,
        record_property: Any,
    ) -> None:
        from edgeprune.budget import Budget

        budget = asked["budget"]
        self.device = device
        self.measured: list[Measurement] = []
        self._test, self._baseline, self._record = test, baseline, record_property
        self._regression = asked["regression"]
        self._bounds = Budget.parse(budget).in_numbers() if budget else None

    def measure(
        self, file: str | os.PathLike[str], inputs: Batch, runs: int = 50, **how: Any
    ) -> Measurement:
        """As ``Device.measure``; the statistics become properties in JUnit's XML."""
        bounds = self._bounds
        how.setdefault("memory", bounds is not None and bounds.peak_memory_mb is not None)
        found = self.device.measure(file, inputs, runs, **how)
        self.measured.append(found)
        self._tell(found)
        if found.state.emulated:
            pytest.skip("emulated: not a latency, so neither budget nor baseline is judged")
        if bounds is not None:
            _judge(found, bounds)
        if self._baseline is not None:
            self._baseline.judge(f"{self._test}::{found.name}", found, self._regression)
        return found

    def _tell(self, found: Measurement) -> None:
        state = found.state
        told = found.to_json()["statistics"] | {
            "peak_memory_mb": found.peak_memory_mb,
            "flags": "; ".join(found.flags),
            "device": f"{state.device}: {state.cpu_model}",
        }
        for name, value in told.items():
            self._record(f"{found.name}.{name}", value)


def _judge(found: Measurement, bounds: AbsoluteBudget) -> None:
    from edgeprune.validate import bound_checks

    failed = [str(check) for check in bound_checks(found, bounds) if check.passed is False]
    if failed:
        pytest.fail(f"{found.name}: over budget: {'; '.join(failed)}", pytrace=False)


class Baseline:
    """Stored medians, by test, file, device and processor.

    Args:
        store: take what is measured for the new baseline, instead of judging it.
    """

    def __init__(self, path: Path, store: bool) -> None:
        self.path, self.store = path, store

    @classmethod
    def of(cls, config: pytest.Config) -> Baseline | None:
        """As the command line or the configuration names it."""
        store = config.getoption("edgeprune_store")
        name = config.getoption("edgeprune_baseline") or config.getini("edgeprune_baseline")
        if not name and store:
            raise pytest.UsageError("--edgeprune-store: where? Add --edgeprune-baseline FILE.")
        return cls(config.rootpath / name, store) if name else None

    def judge(self, what: str, found: Measurement, regression: float) -> None:
        """Fail the test if even the lower end of the median's interval is too far above."""
        from edgeprune.devices.protocol import median_interval

        state = found.state
        held, where = self._read(), f"{state.device}: {state.cpu_model}, {state.threads} threads"
        median = median_interval(found.samples_ms)
        if self.store:
            held.setdefault(where, {})[what] = {
                "p50_ms": median.value,
                "flags": list(found.flags),
                "versions": state.versions,
            }
            self._write(held)
            return
        before = held.get(where, {}).get(what)
        if before is None:
            pytest.fail(
                f"{what}: no baseline for {where} in {self.path}. Store one on this device with "
                "--edgeprune-store.",
                pytrace=False,
            )
        bound = (1 + regression) * before["p50_ms"]
        if median.low > bound:
            pytest.fail(
                f"{what}: regression: median {median.value:.4g} ms (95%: from {median.low:.4g}), "
                f"baseline {before['p50_ms']:.4g} ms, wanted {bound:.4g} ms at most"
                + "".join(f"; {flag}" for flag in found.flags),
                pytrace=False,
            )

    def _read(self) -> dict[str, dict[str, Any]]:
        from edgeprune import files

        if self.store and not self.path.exists():
            return {}
        held: dict[str, dict[str, Any]] = files.read_json(self.path, "baseline")["medians"]
        return held

    def _write(self, held: dict[str, dict[str, Any]]) -> None:
        from edgeprune import files

        files.write_json(self.path, "baseline", {"medians": held})
