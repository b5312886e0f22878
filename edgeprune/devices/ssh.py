"""Machines on the network, by ssh: ``ssh:[user@]host[:port]``, or a name of ``~/.ssh/config``."""

from __future__ import annotations

import asyncio
import os
import shlex
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

import asyncssh

from edgeprune.devices.transport import Ended, Stream, Transport, target_of
from edgeprune.errors import DeviceError, InputError, LostError

CONNECT_S = 20.0
# A machine that is switched off, or a cable that is pulled, says nothing.
KEEPALIVE_S, KEEPALIVES = 10, 3
STOP_S = 10.0
CHUNK = 1 << 18
Answer = TypeVar("Answer")


class SshTransport(Transport):
    """A connection whose host key was verified against ``known_hosts``.

    Raises:
        InputError: the address is none, or the host key is unknown or another one.
        DeviceError: nobody answers, or lets us in.
    """

    lock = "/tmp/edgeprune.lock"

    def __init__(self, address: str) -> None:
        self.name = f"ssh:{address}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._connection = self.ask(_connected(self.name, address), 2 * CONNECT_S)
            system, _, machine = self._said("uname", "-sm").partition(" ")
            self.target = target_of(machine, system.lower(), self.name)
            self.folder = f"{self._said('printenv', 'HOME')}/.cache/edgeprune-device"
        except BaseException:
            self._stop()
            raise

    def start(self, words: Sequence[str]) -> Stream:
        """See ``Transport.start``."""
        return _SshStream(self, self.ask(self._started(shlex.join(words)), CONNECT_S))

    async def _started(self, command: str) -> asyncssh.SSHClientProcess[bytes]:
        return await self._connection.create_process(command, encoding=None)

    def properties(self) -> dict[str, str]:
        """Nothing that other systems do not tell."""
        return {}

    def close(self) -> None:
        """End the connection."""
        self._connection.abort()
        self._stop()

    def ask(self, work: Coroutine[Any, Any, Answer], limit_s: float) -> Answer:
        """Do it on the connection's own thread.

        Raises:
            LostError: the connection is gone.
            TimeoutError: it takes longer than ``limit_s``.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit_s)
        except FutureTimeoutError:
            future.cancel()
            raise
        except (asyncssh.Error, OSError) as error:
            raise LostError(f"{self.name}: the connection was lost ({error})") from error

    def _said(self, *words: str) -> str:
        return self.run(words).checked(f"{self.name}: {words[0]}").decode().strip()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)


class _SshStream(Stream):
    """See ``Stream``."""

    def __init__(self, transport: SshTransport, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._transport = transport
        self._process = process

    def line(self, limit_s: float) -> str:
        line = self._transport.ask(self._process.stdout.readline(), limit_s)
        return line.decode(errors="replace").rstrip("\n")

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            self._transport.ask(self._written(data[start : start + CHUNK]), KEEPALIVE_S * 6.0)

    async def _written(self, data: bytes) -> None:
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    def end_input(self) -> None:
        self._transport.ask(self._ended_input(), STOP_S)

    async def _ended_input(self) -> None:
        self._process.stdin.write_eof()

    def result(self, limit_s: float) -> Ended:
        done = self._transport.ask(self._process.wait(), limit_s)
        if done.exit_status is None:
            killed = done.exit_signal and f": the program there got signal {done.exit_signal[0]}"
            raise LostError(f"{self._transport.name}: the connection was lost{killed or ''}")
        assert isinstance(done.stdout, bytes) and isinstance(done.stderr, bytes)  # no encoding
        return Ended(done.returncode or 0, done.stdout, done.stderr)

    def close(self) -> None:
        self._transport.ask(self._closed(), STOP_S)

    async def _closed(self) -> None:
        self._process.close()


async def _connected(name: str, address: str) -> asyncssh.SSHClientConnection:
    user, host, port = _parts(name, address)
    given: dict[str, Any] = {"username": user} if user else {}
    given |= {"port": port} if port else {}
    try:
        return await asyncssh.connect(
            host,
            **given,
            connect_timeout=CONNECT_S,
            login_timeout=CONNECT_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVES,
            agent_forwarding=False,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise InputError(
            f"{name}: connect: the host's key cannot be verified ({error}). Log in once with "
            f"`ssh {shlex.quote(host)}`, compare the key, and let ssh remember it."
        ) from error
    except asyncssh.PermissionDenied as error:
        raise DeviceError(
            f"{name}: connect: not let in ({error}). Edgeprune asks for no password: give the host "
            f"your key with `ssh-copy-id {shlex.quote(host)}`."
        ) from error
    except (asyncssh.Error, OSError) as error:
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else str(error) or "nobody answers"
        raise DeviceError(
            f"{name}: connect: {why}. Is it on, and does `ssh` reach it from here?"
        ) from error


def _parts(name: str, address: str) -> tuple[str, str, int]:
    """User, host and port of ``[user@]host[:port]``; an IPv6 address stands in brackets."""
    user, _, place = address.rpartition("@")
    host, colon, port = place, "", ""
    if place.startswith("["):
        host, _, rest = place[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    elif place.count(":") == 1:
        host, colon, port = place.partition(":")
    if not host or host.startswith("-") or (colon and not port.isdecimal()):
        raise InputError(f"got device '{name}', wanted ssh:[user@]host[:port]")
    return user, host, int(port or 0)
