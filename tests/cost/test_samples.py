"""Samples are taken on the real runtime, kept as they come, and never taken twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cost_models import encoder

from edgeprune.cost import samples as module
from edgeprune.cost.samples import (
    Lowerable,
    Point,
    Sampler,
    Samples,
    fastest_ms,
    measure_calmly,
    read_samples,
    samples_file,
)
from edgeprune.devices import Device, DeviceState, Measurement, Workload, connect
from edgeprune.errors import EdgepruneError
from edgeprune.lower import Lowering
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery.pieces import chain

INT8 = Lowering("int8")

STATE = DeviceState("made up", "none", "none", None, (), None, (0,), 1, {})


@pytest.fixture(scope="module")
def sites() -> Sites:
    return find_sites(encoder(layers=1))


def counted(
    sites: Sites, built: list[str], name: str, stop: bool = False
) -> Callable[[], Lowerable]:
    """Builds the feed-forward block, and notes that it did."""

    def build() -> Lowerable:
        if stop:
            raise KeyboardInterrupt
        built.append(name)
        piece = chain(sites, sites.residuals[1:], {}, 8)
        return piece.module, piece.inputs

    return build


@pytest.mark.alone
def test_a_stopped_measurement_goes_on_where_it_was(
    sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    monkeypatch.setattr(module, "ROUNDS", 10)
    path, built = tmp_path / "samples.json", []

    def points(stop: bool) -> list[Point]:
        return [
            Point("first", counted(sites, built, "first"), memory=True),
            Point("second", counted(sites, built, "second", stop)),
        ]

    def take(device: Device, stop: bool) -> Samples:
        with Sampler(sites.program, device, INT8, path, ("first", "second")) as sampler:
            sampler.take(points(stop))
        return sampler.taken

    with connect("local") as device:
        with pytest.raises(KeyboardInterrupt):
            take(device, stop=True)
        assert list(read_samples(path)) == ["first"]
        found = take(device, stop=False)
        assert built == ["first", "second"]
        again = take(device, stop=True)
    assert again == found == read_samples(path)
    assert found["first"].peak_memory_mb and found["second"].peak_memory_mb is None
    assert found["first"].ratio > 0 and found["first"].working_set_bytes > 8 * 64 * 4
    assert len(found["first"].samples_ms) == len(found["first"].dense_ms) >= 10


class Unplugged:
    """This machine, whose connection is lost in one of its measurements."""

    def __init__(self, device: Device, fails_at: int) -> None:
        self.device, self.name, self.left = device, device.name, fails_at

    def state(self) -> DeviceState:
        return self.device.state()

    def measure_in_turns(
        self, workloads: Sequence[Workload], rounds: int = 50
    ) -> dict[str, Measurement]:
        self.left -= 1
        if not self.left:
            raise EdgepruneError("device unplugged: connection lost while measuring")
        return self.device.measure_in_turns(workloads, rounds)


@pytest.mark.nightly
@pytest.mark.alone
def test_a_lost_connection_keeps_every_finished_batch(
    sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    monkeypatch.setattr(module, "ROUNDS", 5)
    monkeypatch.setattr(module, "TRIES", 1)
    path, built, names = tmp_path / "samples.json", [], ("first", "second", "third")
    points = [Point(name, counted(sites, built, name)) for name in names]
    with connect("local") as device:
        lost = Unplugged(device, fails_at=3)
        with (
            pytest.raises(EdgepruneError, match="connection lost"),
            Sampler(sites.program, lost, INT8, path, names) as sampler,  # type: ignore[arg-type]
        ):
            sampler.take(points)
        assert "2 measured files are kept" in caplog.text
        assert list(read_samples(path)) == ["first", "second"]
        with Sampler(sites.program, device, INT8, path, names) as sampler:
            sampler.take(points)
    assert list(sampler.taken) == list(names)
    assert built == ["first", "second", "third", "third"]


def test_samples_are_kept_by_shape_and_precision_not_by_weights(sites: Sites) -> None:
    other = find_sites(encoder(layers=2))
    reweighted = encoder(layers=1)
    for weight in reweighted.module.parameters():
        weight.data += 1
    with connect("local") as device:
        path = samples_file(sites.program, device, INT8)
        assert samples_file(reweighted, device, INT8) == path
        assert samples_file(sites.program, device, Lowering("fp32")) != path
        assert samples_file(other.program, device, INT8) != path


def test_an_unreadable_file_of_samples_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    path.write_text('{"format": "edgeprune.cost-')
    assert read_samples(path) == {}


def test_other_load_does_not_count() -> None:
    quiet = [1.0, 1.01, 1.02, 1.0, 1.01] * 4
    assert fastest_ms(quiet) == fastest_ms(quiet + [5.0] * 4)


class Restless:
    """Gives each measurement of the script in turn: runs in ms of its only file."""

    def __init__(self, *script: tuple[float, ...]) -> None:
        self.script = list(script)

    def measure_in_turns(self, workloads: object, rounds: int) -> dict[str, Measurement]:
        runs = self.script.pop(0)
        return {"x": Measurement("x", runs, 1.0, 5, 1.0, None, 1.0, STATE)}


QUIET, BUSY, BUSIER = (1.0,) * 20, (1.0,) * 5 + (1.3,) * 15, (1.0,) * 5 + (2.0,) * 15


def test_a_busy_device_is_measured_again(caplog: pytest.LogCaptureFixture) -> None:
    device = Restless(BUSY, QUIET, BUSY)
    assert measure_calmly(device, [], 20)["x"].samples_ms == QUIET  # type: ignore[arg-type]
    assert len(device.script) == 1 and not caplog.records
    device = Restless(BUSIER, BUSY, BUSIER)
    assert measure_calmly(device, [], 20)["x"].samples_ms == BUSY  # type: ignore[arg-type]
    assert "busy in 3 tries; a median was 30% above" in caplog.text
