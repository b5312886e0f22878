"""The work folder on a device: a locked session in it, files with checksums, and no traces.

All is done there by the keeper (``backends/runner/keeper.c``), which ends a session by itself when
we are gone: programs are killed, settings put back, files removed. Kept are it and a cache.
"""

from __future__ import annotations

import getpass
import logging
import os
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeprune import console
from edgeprune.devices.keeper import BUSY, FULL, LOST, OVERTIME, keeper
from edgeprune.devices.transport import LONG_S, SHORT_S, Ended, Stream, Transport
from edgeprune.errors import DeviceError, LostError
from edgeprune.files import sha256_of

log = logging.getLogger(__name__)

BEAT_S = 10.0
# A silent client is a lost one. A laptop that sleeps for longer has to begin again.
SILENCE_S = 60
WAIT_S = 1800.0
ASK_AGAIN_S = 2.0
# Till the end of a session is known here.
NOTICE_S = 1.0
# For the keeper itself to end a program and say so.
GRACE_S = 30.0


class Folder:
    """An open session, for use in a ``with`` block; one at a time on a device.

    Args:
        wait_s: how long to wait while somebody else measures there.

    Raises:
        DeviceError: no room, no right to write, or busy for too long; names the stage.
        LostError: the connection is lost, here or in any method.
    """

    def __init__(self, transport: Transport, wait_s: float = WAIT_S) -> None:
        self.transport = transport
        self._wait_s = wait_s
        self._lost = threading.Event()
        self._left = threading.Event()

    def __enter__(self) -> Folder:
        self._keeper = install(self.transport)
        self._session = self._held()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._left.set()
        self._beats.join()
        try:
            self._session.end_input()
            ended = self._session.result(GRACE_S)
            for line in ended.stdout.decode(errors="replace").splitlines():
                log.warning("%s: %s", self.transport.name, line)
        except (DeviceError, TimeoutError) as error:
            log.warning("%s: it cleans up by itself: %s", self.transport.name, error)
        finally:
            self._close(self._session)

    def put(self, local: Path, place: str, what: str = "") -> None:
        """Copy a file there, unless the same is there already.

        Args:
            place: below the folder: ``session/NAME`` is gone afterwards, ``cache/KEY/NAME`` stays
                until others need the room.

        Raises:
            DeviceError: no room, or what came there is not what was sent.
        """
        stage = self._stage(f"push {what or local.name}")
        size = local.stat().st_size
        words = self._words("receive", place, sha256_of(local), str(size))
        with self._timely(stage), self.transport.start(words) as stream:
            answer = stream.line(LONG_S)
            if answer == "send":
                # It may end while we write, as on a full disk: its result tells that from a loss.
                with suppress(LostError), local.open("rb") as data:
                    while part := data.read(1 << 20):
                        stream.write(part)
            ended = stream.result(LONG_S)
        if ended.code == FULL:
            raise DeviceError(
                f"{stage}: no room for {size / 2**20:.0f} MiB: {ended.words}. Free some space there"
            )
        self._check_alive(ended, stage)
        ended.checked(stage)

    def write(self, name: str, data: bytes) -> None:
        """A small file into the session's folder."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            self.put(Path(file.name), f"session/{name}", name)

    def get(self, name: str, local: Path) -> None:
        """Copy a file from the session's folder."""
        stage = self._stage(f"pull {name}")
        self._check_lost(stage)
        with self._timely(stage):
            try:
                self.transport.pull(f"{self.transport.folder}/session/{name}", local)
            except DeviceError:
                self._check_open(stage)
                raise

    def run(
        self, words: Sequence[str], limit_s: float, tell: Callable[[str], None] | None = None
    ) -> Ended:
        """Run a program in the session's folder; it and all it starts are gone afterwards.

        Args:
            words: the program first: a path from the session's folder, or a name on the PATH.
            limit_s: killed after that.
            tell: is given every line that it writes, as soon as it does.

        Raises:
            DeviceError: it took too long.
        """
        stage = self._stage(f"run {Path(words[0]).name}")
        with (
            self._timely(stage),
            self.transport.start(self._words("run", str(int(limit_s)), *words)) as stream,
        ):
            end = time.monotonic() + limit_s + GRACE_S
            while tell and (line := stream.line(end - time.monotonic())):
                tell(line)
            ended = stream.result(end - time.monotonic())
        if ended.code == OVERTIME:
            raise DeviceError(f"{stage}: it hung, and was killed after {limit_s:.0f} s")
        self._check_alive(ended, stage)
        return ended

    def change(self, setting: str, do: Sequence[str], undo: Sequence[str]) -> bool:
        """Change a setting of the device until the session ends; whether it could be.

        The words that undo it are on the device's disk before those that do it are run.
        """
        stage = self._stage(f"change {setting}")
        words = self._words("change", setting, str(len(undo)), *undo, *do)
        with self._timely(stage):
            ended = self.transport.run(words, GRACE_S)
        self._check_alive(ended, stage)
        return ended.code == 0

    def facts(self) -> dict[str, str]:
        """See ``read_facts``."""
        with self._timely(self._stage("facts")):
            return read_facts(self.transport, self._keeper)

    def _words(self, command: str, *rest: str) -> list[str]:
        return [self._keeper, command, self.transport.folder, *rest]

    def _stage(self, what: str) -> str:
        return f"{self.transport.name}: {what}"

    def _held(self) -> Stream:
        owner = f"{getpass.getuser()} on {platform.node()}, process {os.getpid()}"
        words = self._words("hold", self.transport.lock, owner, str(SILENCE_S))
        end, said = time.monotonic() + self._wait_s, ""
        stage = self._stage("lock")
        while True:
            stream = self.transport.start(words)
            with self._timely(stage, stream):
                answer = stream.line(GRACE_S)
                while answer.startswith("not undone"):
                    log.warning("%s: %s", self.transport.name, answer)
                    answer = stream.line(GRACE_S)
                if answer == "held":
                    return stream
                ended = stream.result(GRACE_S)
            self._close(stream)
            if ended.code != BUSY:
                ended.checked(stage)
                raise DeviceError(f"{stage}: {ended.words}")
            if ended.words != said:
                said = ended.words
                console.say(f"  {self.transport.name}: measured by {said}; waiting")
            if time.monotonic() > end:
                raise DeviceError(f"{stage}: still measured by {said}, after {self._wait_s:.0f} s")
            time.sleep(ASK_AGAIN_S)

    @contextmanager
    def _timely(self, stage: str, stream: Stream | None = None) -> Iterator[None]:
        """Says at which stage time was over or the connection lost, and closes ``stream`` then."""
        try:
            yield
        except (TimeoutError, LostError) as error:
            if stream:
                self._close(stream)
            if isinstance(error, LostError):
                if str(error).startswith(stage):
                    raise
                raise _lost(stage, error.__cause__) from error
            raise DeviceError(f"{stage}: the device does not answer any more") from error

    def _beat(self) -> None:
        while not self._left.wait(BEAT_S):
            try:
                self._session.write(b"\n")
            except (DeviceError, TimeoutError):
                self._lost.set()
                return

    def _check_lost(self, stage: str) -> None:
        if self._lost.is_set():
            raise _lost(stage)

    def _check_alive(self, ended: Ended, stage: str) -> None:
        """What fails because the session has ended, as after silence, is a lost connection too."""
        if ended.code == LOST:
            raise _lost(stage, ended.words)
        if ended.code:
            self._check_open(stage)

    def _check_open(self, stage: str) -> None:
        try:
            said = self._session.line(NOTICE_S)
        except TimeoutError:
            return
        raise _lost(stage, said or "its keeper has ended")

    def _close(self, stream: Stream) -> None:
        try:
            stream.close()
        except (DeviceError, TimeoutError) as error:
            log.debug("%s: %s", self.transport.name, error)


def install(transport: Transport) -> str:
    """Where the keeper is on the device, copied there first if it is not.

    Raises:
        DeviceError: it cannot be written or does not run.
    """
    local = keeper(transport.target)
    place = f"{transport.folder}/keeper-{sha256_of(local)[:16]}"
    if transport.run([place, "facts", transport.folder]).code == 0:
        return place
    stage = f"{transport.name}: install the keeper"
    part = f"{place}.{secrets.token_hex(4)}.part"
    transport.run(["mkdir", "-p", transport.folder]).checked(stage)
    try:
        transport.push(local, part)
        with tempfile.TemporaryDirectory() as folder:
            back = Path(folder, "keeper")
            transport.pull(part, back)
            if back.read_bytes() != local.read_bytes():
                raise DeviceError(f"{stage}: what came there is not what was sent. Try again")
        transport.run(["chmod", "755", part]).checked(stage)
        transport.run(["mv", "-f", part, place]).checked(stage)
    except DeviceError as error:
        if not isinstance(error, LostError):
            transport.run(["rm", "-f", part])
        raise
    transport.run([place, "facts", transport.folder]).checked(stage)
    return place


def read_facts(transport: Transport, place: str) -> dict[str, str]:
    """What the system tells of itself: names are those of files, and a few that are no files.

    Raises:
        DeviceError: it does not answer.
    """
    ended = transport.run([place, "facts", transport.folder], SHORT_S)
    told = ended.checked(f"{transport.name}: facts").decode(errors="replace").split("\0")
    return dict(zip(told[::2], (each.strip() for each in told[1::2]), strict=False))


def _lost(stage: str, why: object = None) -> LostError:
    because = f" ({why})" if why else ""
    return LostError(
        f"{stage}: the connection was lost{because}. The device stops and cleans up by itself; "
        "run the same command again."
    )
