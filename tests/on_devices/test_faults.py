"""Whatever fails on the way to a device and back: it is said where, and nothing is left there.

By day while a program runs there, by night at each step, which writes docs/faults.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from models import inputs, model
from phone import Phone
from sshd import Sshd
from steps import STEPS, session

from edgeprune.devices import remote
from edgeprune.devices.transport import Stream
from edgeprune.errors import DeviceError, EdgepruneError, LostError
from edgeprune.lower import Lowering, lower_graph

# There is one sshd and one adbd, and what a fault leaves must be gone in seconds.
pytestmark = pytest.mark.alone

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
DEVICES = ("ssh", "adb")
HEAD = """# What may fail on the way to a device

Written by `make nightly`, which brings about every one of these faults: over ssh with Debian's
sshd, over adb with Debian's adbd and an emulated Arm processor. A setting of the device is changed
meanwhile. After each fault no program runs there, the session's folder is gone, and the setting is
what it was; the next session measures. Kept on a device are the keeper and its cache.

A step is: *lock*, the folder is ours; *push*, half of the model is there; *run*, the runner runs;
*pull*, it has answered.

| fault | step | the user is told | cleared away |
|---|---|---|---|
"""
Device = Sshd | Phone
rows: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}


@pytest.fixture(scope="module", autouse=True)
def _page() -> Iterator[None]:
    """The table, if all of it was made; devices share a row where they agree."""
    yield
    if len(rows) != len(FAULTS) or any(len(told) < len(DEVICES) for told in rows.values()):
        return
    lines = []
    for fault, step in FAULTS:
        told = rows[fault, step]
        kinds = {"": told["ssh"]} if told["ssh"] == told["adb"] else told
        for kind, (words, when) in kinds.items():
            lines.append(f"| {fault}{f', {kind}' * bool(kind)} | {step} | {words} | {when} |\n")
    PAGE.write_text(HEAD + "".join(lines))


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "model.pte"
    example = inputs("vit", batch=1)
    path.write_bytes(lower_graph(model("vit"), example, Lowering("fp32")).data)
    torch.save(example, path.with_suffix(".inputs"))
    return path


@pytest.fixture
def fresh(lowered: Path, tmp_path: Path) -> Path:
    """A file that is on no device yet, and large enough to be cut."""
    path = tmp_path / "model.pte"
    path.write_bytes(lowered.read_bytes() + os.urandom(3 << 20))
    shutil.copy(lowered.with_suffix(".inputs"), path.with_suffix(".inputs"))
    return path


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    found: Device = request.getfixturevalue({"ssh": "sshd", "adb": "phone"}[request.param])
    disk = found.home / ".cache" if isinstance(found, Sshd) else None
    if disk and not disk.is_mount():
        disk.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)]
        subprocess.run(words, check=True)
        request.getfixturevalue("unmounted").append(disk)
    yield found
    filler(found).unlink(missing_ok=True)
    found.reconnect()


@pytest.fixture(scope="module")
def unmounted() -> Iterator[list[Path]]:
    disks: list[Path] = []
    yield disks
    for disk in disks:
        subprocess.run(["umount", str(disk)], check=True)


def setting_of(device: Device) -> Path:
    """A file that is there while the setting is changed, as the device names it."""
    return Path("/tmp/a changed setting") if isinstance(device, Phone) else device.home / "changed"


def left(device: Device) -> str:
    """What a session has left there; empty if nothing."""
    setting = setting_of(device)
    root = device.root if isinstance(device, Phone) else Path("/")
    found = []
    for program in device.programs():
        with contextlib.suppress(psutil.NoSuchProcess):
            if program.status() != psutil.STATUS_ZOMBIE:
                found.append(program.name())
    found += [each for each in ("session",) if (device.place / each).exists()]
    for folder in ("running", "changed"):
        found += os.listdir(device.place / folder)
    found += ["the setting"] * (root / setting.relative_to("/")).exists()
    return ", ".join(found)


def is_cleared(device: Device) -> bool:
    """Within 15 seconds."""
    end = time.monotonic() + 15
    while left(device):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def runner(device: Device) -> psutil.Process:
    """As long as it runs."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for each in device.programs():
            with contextlib.suppress(psutil.Error):
                if any(Path(word).name == "runner" for word in each.cmdline()[:2]):
                    return each
    raise AssertionError([each.cmdline() for each in device.programs()])


def fill(device: Device) -> None:
    """Its disk, to the last byte."""
    with filler(device).open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


def filler(device: Device) -> Path:
    return device.place.parent / "filled"


FAULTS: dict[tuple[str, str], type[EdgepruneError] | None] = {
    **{("client killed", step): None for step in STEPS},
    **{("connection dropped", step): LostError for step in STEPS},
    **{("server killed", step): LostError for step in STEPS},
    **{("device switched off and on", step): LostError for step in STEPS},
    **{("disk filled", step): EdgepruneError for step in ("push", "run")},
    ("runner hangs", "run"): DeviceError,
    ("byte changed on the way", "push"): DeviceError,
    ("byte changed on the disk", "push"): None,
}
BY_DAY = {each for each in FAULTS if each[1] == "run" or (each[0], "run") not in FAULTS}


def note(device: Device, fault: str, step: str, words: str) -> None:
    """A line of the page; fails where something is left."""
    when = "by the next session"
    if fault != "device switched off and on":
        when = "at once"
        assert is_cleared(device), left(device)
    device.reconnect()
    words = words or "-"
    words = words.replace(device.name, "*device*")
    words = re.sub(r"\d+ (MiB|s)\b", r"… \1", words)
    words = re.sub(r" \(.*\)", "", words)  # how the system called it
    kind = device.name.partition(":")[0]
    rows.setdefault((fault, step), {})[kind] = (words, when)


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        pytest.param(*each, marks=() if each in BY_DAY else pytest.mark.nightly)
        for each in FAULTS
        if FAULTS[each]
    ],
)
def test_a_fault_is_named_with_its_step_and_nothing_is_left(
    fault: str, step: str, device: Device, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def happen() -> None:
        held = runner(device) if step == "run" else None
        if held:
            held.send_signal(signal.SIGSTOP)
        acts[fault]()
        if held and fault == "disk filled":
            held.send_signal(signal.SIGCONT)

    acts: dict[str, Callable[[], None]] = {
        "connection dropped": device.drop,
        "server killed": device.restart,
        "device switched off and on": device.reboot,
        "disk filled": lambda: fill(device),
        "runner hangs": lambda: None,
        "byte changed on the way": lambda: monkeypatch.setattr(
            stream_of(device), "write", changing(stream_of(device).write)
        ),
    }
    if fault == "runner hangs":
        monkeypatch.setattr(remote, "JOB_LIMIT_S", 2.0)
        monkeypatch.setattr(remote, "GRACE_S", 0.0)
    expected = FAULTS[fault, step]
    assert expected
    with pytest.raises(expected) as raised:
        session(device.name, fresh, setting_of(device), step, happen)
    message = str(raised.value)
    filler(device).unlink(missing_ok=True)
    monkeypatch.undo()
    assert device.name in message
    assert "lost" in message or step in message or "measure" in message
    note(device, fault, step, message)
    session(device.name, fresh, setting_of(device), "none", lambda: None)
    assert is_cleared(device), left(device)


def stream_of(device: Device) -> type[Stream]:
    from edgeprune.devices.adb import _AdbStream
    from edgeprune.devices.ssh import _SshStream

    return _AdbStream if isinstance(device, Phone) else _SshStream


def changing(write: Callable[[Stream, bytes], None]) -> Callable[[Stream, bytes], None]:
    """Changes a byte of what is written."""
    return lambda stream, data: write(stream, data[:99] + bytes([data[99] ^ 1]) + data[100:])


@pytest.mark.parametrize(
    "step",
    ["run", *(pytest.param(each, marks=pytest.mark.nightly) for each in STEPS if each != "run")],
)
def test_a_client_that_is_killed_leaves_nothing(step: str, device: Device, fresh: Path) -> None:
    words = [sys.executable, str(Path(__file__).with_name("steps.py"))]
    words += [device.name, str(fresh), str(setting_of(device)), step]
    folders = os.pathsep.join(sys.path)
    client = subprocess.Popen(
        words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": folders}
    )
    assert client.stdout and client.stdout.readline() == b"here\n"
    if step == "run":
        runner(device).send_signal(signal.SIGSTOP)
    assert left(device)
    client.kill()
    client.wait()
    note(device, "client killed", step, "")
    session(device.name, fresh, setting_of(device), "none", lambda: None)


def test_a_file_that_was_damaged_on_the_disk_is_sent_again(device: Device, fresh: Path) -> None:
    session(device.name, fresh, setting_of(device), "none", lambda: None)
    (there,) = (
        each
        for each in (device.place / "cache").glob("*/model.pte")
        if each.read_bytes() == fresh.read_bytes()
    )
    data = bytearray(there.read_bytes())
    data[40] ^= 1
    there.write_bytes(data)
    session(device.name, fresh, setting_of(device), "none", lambda: None)
    assert there.read_bytes() == fresh.read_bytes()
    note(device, "byte changed on the disk", "push", "nothing: it is sent again")
