"""A board with adb: Debian's daemon on an emulated Arm processor, in namespaces of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
from sshd import free_port

INSIDE = 6000
DISK = "size=256m"
CLONE_NEWNET = 0x40000000


class Phone:
    """The daemon, a relay into its network, and an adb server of our own.

    Attributes:
        serial: as adb lists it.
        root: where its files are seen from outside.
    """

    def __init__(self, devices: Path, folder: Path) -> None:
        self._devices, self._folder = devices, folder
        self._mounts, self._disk = folder / "root", folder / "disk"
        self._mounts.mkdir()
        self._disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(self._disk)], check=True)
        self._relay = _Relay()
        self.serial = f"127.0.0.1:{self._relay.port}"
        os.environ["ANDROID_ADB_SERVER_PORT"] = str(free_port())
        self.start()
        self.start_server()

    def start(self) -> None:
        """Switch it on."""
        words = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork"]
        words += [str(Path(__file__).with_name("phone.sh")), str(self._devices / "phone")]
        words += [
            str(self._mounts),
            str(self._disk),
            str((self._devices / "host" / "qemu-aarch64").resolve()),
        ]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [*words, str(INSIDE)], stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 20
        while not (self._found() and self._relay.reaches(self.daemon, INSIDE)):
            assert time.monotonic() < end and self._process.poll() is None, self.said
            time.sleep(0.1)

    @property
    def said(self) -> str:
        """What the daemon wrote."""
        return (self._folder / "log").read_text()

    @property
    def daemon(self) -> int:
        """Its process, as we see it."""
        return self._found()[0]

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.daemon}/root")

    @property
    def name(self) -> str:
        """For ``connect``."""
        return f"adb:{self.serial}"

    @property
    def place(self) -> Path:
        """The work folder, as we see it."""
        return self.root / "data/local/tmp/edgeprune"

    def programs(self) -> list[psutil.Process]:
        """What edgeprune runs there."""
        found = []
        for each in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "/edgeprune/" in " ".join((*each.cmdline(), each.cwd())):
                    found.append(each)
        return found

    def reboot(self) -> None:
        """All that runs there dies at once; its disk stays."""
        for each in self.programs():
            each.send_signal(signal.SIGKILL)
        psutil.Process(self.daemon).send_signal(signal.SIGKILL)
        self._process.wait()
        self.start()

    def restart(self) -> None:
        """adb's server dies, and is started again."""
        self.kill_server()
        self.start_server()

    def reconnect(self) -> None:
        """Plug the cable in."""
        self.connect()

    def _found(self) -> list[int]:
        found = []
        for each in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if each.name() == "adbd":
                    found.append(each.pid)
        return found

    def start_server(self) -> None:
        """Of adb, on this machine, connected to the phone."""
        subprocess.run(["adb", "start-server"], check=True, capture_output=True)
        self.connect()

    def connect(self) -> None:
        end = time.monotonic() + 20
        listed = ""
        while f"{self.serial}\tdevice" not in listed:
            assert time.monotonic() < end, listed + self.said
            subprocess.run(["adb", "disconnect", self.serial], capture_output=True)
            subprocess.run(["adb", "connect", self.serial], capture_output=True)
            listed = subprocess.run(["adb", "devices"], capture_output=True, text=True).stdout
            time.sleep(0.2)

    def kill_server(self) -> None:
        subprocess.run(["adb", "kill-server"], capture_output=True)

    def drop(self) -> None:
        """Pull the cable, and plug it in."""
        self._relay.drop()

    def stop(self) -> None:
        self.kill_server()
        self._relay.close()
        for each in reversed(psutil.Process(self._process.pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                each.send_signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        subprocess.run(["umount", str(self._disk)], check=True)


class _Relay:
    """A port of this machine that leads into the phone's network."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", free_port()))
        self.port = int(self._listening.getsockname()[1])
        self._open: list[socket.socket] = []
        self._inside: tuple[int, int] | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def reaches(self, process: int, port: int) -> bool:
        self._inside = (process, port)
        try:
            _inside(process, port).close()
        except OSError:
            return False
        return True

    def drop(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._listening.close()
        self.drop()

    def _accept(self) -> None:
        while True:
            try:
                outer, _ = self._listening.accept()
            except OSError:
                return
            try:
                assert self._inside
                inner = _inside(*self._inside)
            except OSError:
                outer.close()
                continue
            self._open += [outer, inner]
            for one, other in ((outer, inner), (inner, outer)):
                threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    for each in (one, other):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _inside(process: int, port: int) -> socket.socket:
    """A connection in the network of a process; a thread enters it, as whole processes cannot."""
    made: list[socket.socket | OSError] = []

    def connect() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with open(f"/proc/{process}/ns/net") as network:
                if libc.setns(network.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    made[0].settimeout(None)
    return made[0]
