"""Debian's sshd on loopback, with keys of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil


def free_port() -> int:
    """One above those that adb takes for emulators."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not 5554 <= port <= 5585:
            return port


class Sshd:
    """A server and the ``~/.ssh`` of a user who may log in.

    Attributes:
        home: of the user on both ends; ``HOME`` for whoever connects.
        address: for ``ssh:``.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "a home; with $(signs)"
        self.port = free_port()
        self.address = f"{os.environ.get('USER', 'root')}@127.0.0.1:{self.port}"
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        self._keys = folder / "keys"
        self._keys.mkdir()
        for key in (self._keys / "host", ssh / "id_ed25519"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(words, check=True)
        shutil.copy(ssh / "id_ed25519.pub", self._keys / "authorized")
        host_key = (self._keys / "host.pub").read_text()
        (ssh / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        self._config = self._keys / "sshd_config"
        self._config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self._keys}/host\n"
            f"AuthorizedKeysFile {self._keys}/authorized\nPidFile none\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPermitUserRC no\nMaxStartups 100\n"
            f'SetEnv "HOME={self.home}"\n'
        )
        self.start()

    def start(self) -> None:
        """Serve, until ``stop``."""
        Path("/run/sshd").mkdir(exist_ok=True)  # Debian's own service makes it
        words = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self._config)]
        with (self._keys / "log").open("a") as log:
            self._server = subprocess.Popen(words, stderr=log, start_new_session=True)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self._keys / "log").read_text())

    @property
    def name(self) -> str:
        """For ``connect``."""
        return f"ssh:{self.address}"

    @property
    def place(self) -> Path:
        """The work folder."""
        return self.home / ".cache" / "edgeprune-device"

    def programs(self) -> list[psutil.Process]:
        """What edgeprune runs there."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.place) in " ".join((*each.cmdline(), each.cwd())):
                    found.append(each)
        return found

    def reconnect(self) -> None:
        """Nothing: the next connection is a new one."""

    def reboot(self) -> None:
        """All that runs there dies at once."""
        for each in self.programs():
            each.send_signal(signal.SIGKILL)
        self.stop()
        self.start()

    def restart(self) -> None:
        """The server dies, and is started again."""
        self.stop()
        self.start()

    def drop(self) -> None:
        """End every connection, and go on serving."""
        for child in psutil.Process(self._server.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "sshd":
                    child.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the server and every connection."""
        self.drop()
        self._server.kill()
        self._server.wait()
