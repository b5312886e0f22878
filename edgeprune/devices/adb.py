"""Phones and boards by adb: ``adb``, or ``adb:SERIAL`` where several are attached."""

from __future__ import annotations

import re
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adbutils import AdbClient, AdbDevice
from adbutils.errors import AdbError

from edgeprune.devices.transport import Ended, Stream, Transport, target_of
from edgeprune.errors import InputError, LostError

# What adb's server answers at once; also what a device may take to accept data.
ANSWER_S = 60.0
# Packets of adb's second shell protocol: a byte that says what, four of length, data.
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
CHUNK = 1 << 16
GETPROP = {
    "soc": "ro.soc.model",
    "board": "ro.board.platform",
    "model": "ro.product.model",
    "android": "ro.build.version.release",
    "build": "ro.build.fingerprint",
    "emulator": "ro.boot.qemu",
}


class AdbTransport(Transport):
    """A device that adb lists as ``device``.

    Raises:
        InputError: no such device, or several and none named.
        DeviceError: adb's server does not run, or the device does not let us in.
    """

    folder = "/data/local/tmp/edgeprune"
    lock = "/data/local/tmp/edgeprune.lock"

    def __init__(self, address: str) -> None:
        self.name = f"adb:{address}" if address else "adb"
        with _blaming(f"{self.name}: connect"):
            self._client = AdbClient(socket_timeout=ANSWER_S)
            serial = address or _only_one(self._client)
            self._device = AdbDevice(self._client, serial)
            if "shell_v2" not in self._device.get_features().split(","):
                raise InputError(f"{self.name}: its adb is older than Android 7, wanted 7 or newer")
        self.name = f"adb:{serial}"
        self._properties = {name: self._getprop(each) for name, each in GETPROP.items()}
        machine = self._getprop("ro.product.cpu.abi") or self._said("uname", "-m")
        # A board with Linux may well have adb.
        system = "android" if self._properties["android"] else "linux"
        self.target = target_of(machine, system, self.name)

    def start(self, words: Sequence[str]) -> Stream:
        """See ``Transport.start``."""
        with _blaming(f"{self.name}: start {words[0]}"):
            connection = self._device.open_transport(timeout=ANSWER_S)
            try:
                connection.send_command(f"shell,v2,raw:{shlex.join(words)}")
                connection.check_okay()
            except BaseException:
                connection.close()
                raise
            return _AdbStream(self.name, connection.conn)

    def properties(self) -> dict[str, str]:
        """What Android tells of the phone, its screen and its battery."""
        told = {name: value for name, value in self._properties.items() if value}
        if "android" in told:
            battery, power = self._dump("battery"), self._dump("power")
            for name, pattern, text in (
                ("battery", r"level: (\d+)", battery),
                ("battery temperature", r"temperature: (\d+)", battery),
                ("charging", r"(?:AC|USB|Wireless) powered: (true)", battery),
                ("screen", r"mWakefulness=(\w+)", power),
            ):
                found = re.search(pattern, text)
                told |= {name: found[1]} if found else {}
        return told

    def close(self) -> None:
        """Nothing: each program has a connection of its own."""

    def _dump(self, service: str) -> str:
        return self.run(["dumpsys", service]).stdout.decode(errors="replace")

    def _getprop(self, name: str) -> str:
        ended = self.run(["getprop", name])
        return ended.stdout.decode(errors="replace").strip() if ended.code == 0 else ""

    def _said(self, *words: str) -> str:
        return self.run(words).checked(f"{self.name}: {words[0]}").decode().strip()


class _AdbStream(Stream):
    """A program by adb's second shell protocol, which tells output, errors and exit code apart."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        self._name = name
        self._socket = connection
        self._raw = b""
        self._written = {STDOUT: b"", STDERR: b""}
        self._code: int | None = None

    def line(self, limit_s: float) -> str:
        end = time.monotonic() + limit_s
        while b"\n" not in self._written[STDOUT] and self._code is None:
            self._read(end)
        line, _, self._written[STDOUT] = self._written[STDOUT].partition(b"\n")
        return line.decode(errors="replace")

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            self._send(STDIN, data[start : start + CHUNK])

    def end_input(self) -> None:
        self._send(CLOSE_STDIN, b"")

    def result(self, limit_s: float) -> Ended:
        end = time.monotonic() + limit_s
        while self._code is None:
            self._read(end)
        return Ended(self._code, self._written[STDOUT], self._written[STDERR])

    def close(self) -> None:
        self._socket.close()

    def _send(self, kind: int, data: bytes) -> None:
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.sendall(bytes([kind]) + len(data).to_bytes(4, "little") + data)
        except OSError as error:
            raise LostError(f"{self._name}: the connection was lost ({error})") from error

    def _read(self, end: float) -> None:
        """Take in what came, one packet at most."""
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        size = 5 + int.from_bytes(self._raw[1:5], "little")
        if len(self._raw) >= 5 and len(self._raw) >= size:
            kind, data, self._raw = self._raw[0], self._raw[5:size], self._raw[size:]
            if kind == EXIT:
                self._code = data[0]
            elif kind in self._written:
                self._written[kind] += data
            return
        try:
            self._socket.settimeout(left)
            got = self._socket.recv(1 << 20)
        except TimeoutError:
            raise
        except OSError as error:
            raise LostError(f"{self._name}: the connection was lost ({error})") from error
        if not got:
            raise LostError(f"{self._name}: the connection was lost")
        self._raw += got


def attached() -> dict[str, str]:
    """Serial -> state of what adb lists; empty where no adb server runs.

    States are adb's own: ``device``, ``unauthorized``, ``offline``.
    """
    host, port = AdbClient().host, AdbClient().port
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((host, port)):
            return {}
    with _blaming("adb"):
        return {each.serial: each.state for each in AdbClient(socket_timeout=ANSWER_S).list()}


def _only_one(client: AdbClient) -> str:
    found = {each.serial: each.state for each in client.list()}
    ready = [serial for serial, state in found.items() if state == "device"]
    if len(ready) == 1:
        return ready[0]
    if ready:
        raise InputError(
            f"adb: got {len(ready)} devices ({', '.join(ready)}); name one: adb:SERIAL"
        )
    states = ", ".join(f"{serial} is {state}" for serial, state in found.items())
    raise InputError(
        f"adb: no device is ready ({states or 'none is attached'}). Plug it in, allow USB "
        "debugging, and look at `adb devices`."
    )


@contextmanager
def _blaming(stage: str) -> Iterator[None]:
    try:
        yield
    except (AdbError, OSError, EOFError) as error:
        raise LostError(f"{stage}: {error or type(error).__name__}") from error
