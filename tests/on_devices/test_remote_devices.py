"""A real sshd on this machine and a real adbd on an emulated Arm processor are devices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import edgeprune, tiny_task
from models import inputs, model
from phone import Phone
from sshd import Sshd

from edgeprune.devices import Workload, connect, read_measurement
from edgeprune.devices.folder import Folder
from edgeprune.devices.remote import RemoteDevice
from edgeprune.errors import DeviceError, InputError
from edgeprune.lower import Lowering, lower_graph
from edgeprune.profile import read_profile

# There is one sshd and one adbd, and what a fault leaves must be gone in seconds.
pytestmark = pytest.mark.alone

LOWERINGS = {"vit": Lowering("fp32"), "bert": Lowering("int8", "litert")}
# XNNPACK adds up in another order on every processor.
TOLERANCE = 2e-5
Device = Sshd | Phone


@pytest.fixture(params=["ssh", "adb"])
def device(request: pytest.FixtureRequest) -> Device:
    found: Device = request.getfixturevalue({"ssh": "sshd", "adb": "phone"}[request.param])
    return found


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("a folder; $(touch wrong)")
    found = {}
    for name, lowering in LOWERINGS.items():
        made = lower_graph(model(name), inputs(name, batch=1), lowering)
        found[name] = folder / f"{name} 'file'{lowering.suffix}"
        found[name].write_bytes(made.data)
    return found


@pytest.mark.parametrize("name", LOWERINGS)
def test_a_file_gives_on_a_device_what_it_gives_here(
    name: str, device: Device, lowered: dict[str, Path]
) -> None:
    batch = inputs(name, batch=3)
    with connect("local") as local, local.predictor(lowered[name]) as predict:
        wanted = predict(batch)
    with connect(device.name) as opened:
        with opened.predictor(lowered[name]) as predict:
            got = predict(batch)
        found = opened.measure(lowered[name], batch, runs=3, seconds=0.0, memory=True)
        load = Workload("a", lowered[name], tuple(each[:1] for each in batch))
        times = opened.profile([load])["a"]
    assert isinstance(got, torch.Tensor) and isinstance(wanted, torch.Tensor)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    assert len(found.samples_ms) >= 3 and found.peak_memory_mb and found.load_ms > 0
    assert ("emulated: not a latency" in found.flags) == isinstance(device, Phone)
    assert {"attention", "linear"} & {each.op for each in times}
    assert not device.programs()
    kept = {each.partition("-")[0] for each in os.listdir(device.place)}
    assert kept == {"cache", "changed", "keeper", "running"}
    assert not (device.place / "session").exists()


def test_a_runtimes_own_program_times_files_in_our_runners_place(
    sshd: Sshd, lowered: dict[str, Path], tmp_path: Path
) -> None:
    # Neither program is to be had here: this one prints what benchmark_model would.
    printed = Path(__file__).parents[1] / "runner" / "samples" / "benchmark_model.txt"
    program = tmp_path / "benchmark_model"
    program.write_text(f'#!/bin/sh\ntest -f "${{1#--graph=}}" || exit 1\ncat {printed}\n')
    program.chmod(0o755)
    batch = inputs("bert", batch=1)
    with connect(sshd.name, runner=program) as opened:
        found = opened.measure(lowered["bert"], batch, runs=3, memory=True)
        with (
            pytest.raises(InputError, match="cannot do 'run', only measure, memory"),
            opened.predictor(lowered["bert"]) as predict,
        ):
            predict(batch)
        with pytest.raises(InputError, match="benchmark_model runs files of litert"):
            opened.measure(lowered["vit"], inputs("vit", batch=1))
    assert len(found.samples_ms) == 4 and found.peak_memory_mb and found.load_ms
    refused = pytest.raises(InputError, match="reached by adb or ssh")
    with refused, connect("local", runner=program):
        pass


def test_a_second_session_waits_and_is_told_for_whom(device: Device) -> None:
    with connect(device.name) as first:
        assert isinstance(first, RemoteDevice)
        with (
            first.open_transport() as transport,
            pytest.raises(DeviceError) as raised,
            Folder(transport, wait_s=0),
        ):
            pass
    assert f"process {os.getpid()}" in str(raised.value)
    with connect(device.name):
        pass


def test_words_are_never_read_as_commands(device: Device) -> None:
    words = ["a b", "$(touch wrong)", "`id`", "'", '"', "\\", "*", "~", ";", "&& id", "\n", "ü"]
    with connect(device.name) as opened:
        assert isinstance(opened, RemoteDevice)
        with opened.open_transport() as transport:
            for word in words:
                ended = transport.run(["printf", "%s", word])
                assert ended.stdout.decode() == word


def test_a_file_that_is_there_is_not_sent_again(device: Device, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    with connect(device.name) as opened:
        assert isinstance(opened, RemoteDevice)
        folder = opened._folder
        folder.put(file, "cache/some file/it")
        there = device.place / "cache/some file/it"
        assert there.read_bytes() == file.read_bytes()
        number = there.stat().st_ino
        folder.put(file, "cache/some file/it")
        assert there.stat().st_ino == number
        with pytest.raises(DeviceError, match="not a place here"):
            folder.put(file, "cache/../../out")


def test_a_program_that_hangs_dies_with_all_it_started(device: Device) -> None:
    with connect(device.name) as opened:
        assert isinstance(opened, RemoteDevice)
        with pytest.raises(DeviceError, match="run sh: it hung, and was killed after 1 s"):
            opened._folder.run(["sh", "-c", "sleep 100 & sleep 100"], 1)
        assert len([each for each in device.programs() if "sleep" in each.name()]) == 0


@pytest.fixture
def known_hosts(sshd: Sshd) -> Iterator[Path]:
    file = sshd.home / ".ssh" / "known_hosts"
    text = file.read_text()
    yield file
    file.write_text(text)


def test_a_host_with_an_unknown_or_another_key_is_refused(sshd: Sshd, known_hosts: Path) -> None:
    own = (sshd.home / ".ssh" / "id_ed25519.pub").read_text()
    for text in ("", f"[127.0.0.1]:{sshd.port} {own}"):
        known_hosts.write_text(text)
        with (
            pytest.raises(InputError, match="the host's key cannot be verified"),
            connect(sshd.name),
        ):
            pass


def test_without_a_key_that_is_let_in_it_says_what_to_do(sshd: Sshd) -> None:
    key = sshd.home / ".ssh" / "id_ed25519"
    aside = key.rename(key.with_name("aside"))
    try:
        with pytest.raises(DeviceError, match="ssh-copy-id"), connect(sshd.name):
            pass
    finally:
        shutil.move(aside, key)


def test_devices_lists_what_adb_lists_and_what_the_user_wrote_down(
    sshd: Sshd, phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "edgeprune").mkdir()
    hosts = tmp_path / "edgeprune" / "devices.toml"
    hosts.write_text(f'devices = ["{sshd.name}", "ssh:nobody.invalid"]\n')
    ended = edgeprune("devices", "--json")
    assert ended.exit_code == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert list(told) == ["local", phone.name, sshd.name, "ssh:nobody.invalid"]
    assert told[phone.name]["soc"] == "emulated Cortex-A76"
    assert told[phone.name]["emulated"] == "on x86_64"
    assert told[phone.name]["cores"][0]["isa"] == ["neon", "fp16", "dotprod"]
    assert told[sshd.name]["emulated"] is None
    assert all(told[each]["free_mb"] > 0 for each in (phone.name, sshd.name))
    assert "connect" in told["ssh:nobody.invalid"]["error"]


@pytest.mark.parametrize(
    "device", ["ssh", pytest.param("adb", marks=pytest.mark.nightly)], indirect=True
)
def test_a_profile_is_measured_on_a_device(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = edgeprune("profiles", "make", "--device", device.name, "--name", "my-device")
    assert ended.exit_code == 0, ended.stderr
    profile = read_profile(tmp_path / "my-device.toml")
    assert profile.fastest.peak_gflops_fp32 > 0 and profile.bandwidth_gbps > 0
    assert profile.estimated == isinstance(device, Phone)
    assert not device.programs()


def test_adb_without_a_device_says_so(phone: Phone) -> None:
    subprocess.run(["adb", "disconnect", phone.serial], check=True, capture_output=True)
    try:
        with pytest.raises(InputError, match="no device is ready"), connect("adb"):
            pass
    finally:
        phone.connect()


def test_a_build_is_measured_by_ssh_and_checked_by_adb(
    sshd: Sshd, phone: Phone, tmp_path: Path
) -> None:
    out = tmp_path / "build"
    asked = ("--profile", "host", "--task", f"{tiny_task(tmp_path)}:Tiny", "--out", out)
    more = ("--precision", "fp32", "--budget", "latency=95%", "--recover-minutes", 0)
    ended = edgeprune("build", *asked, *more, "--device", sshd.name, "--quiet")
    of_another = edgeprune(
        *("build", "--profile", "pixel8", "--task", f"{tiny_task(tmp_path)}:Tiny", "--quiet"),
        *("--device", sshd.name, "--out", tmp_path / "other"),
    )
    assert of_another.exit_code == 2
    assert "profile pixel8 is of a Google Pixel 8" in of_another.message
    # Whether a model this small is faster is a matter of luck.
    assert ended.exit_code in (0, 1, 4), ended.stderr
    assert verdict_of(out)["numerics"]["passed"]
    assert read_measurement(out / "measurement.json").state.device == sshd.name
    for device, codes in ((sshd, (0, 1, 4)), (phone, (6,))):
        ended = edgeprune(
            "validate", out, "--device", device.name, "--budget", "latency=900ms", "--quiet"
        )
        assert ended.exit_code in codes, (device.name, ended.stderr, ended.stdout)
        checks = verdict_of(out)
        assert checks["numerics"]["passed"]
        assert checks["latency_ms"]["passed"] is (None if device is phone else True)
        assert ("emulated" in checks["latency_ms"]["note"]) == (device is phone)
        assert not device.programs()


def verdict_of(folder: Path) -> dict[str, dict[str, object]]:
    """Its checks by name."""
    body = json.loads((folder / "verdict.json").read_text())
    return {each["name"]: each for each in body["checks"]}
