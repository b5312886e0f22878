"""Files and programs on another machine: what drivers have in common, with no notion of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeprune.errors import DeviceError, InputError

# Of commands that do nothing but tell, and of copies.
SHORT_S, LONG_S = 30.0, 600.0
# What the system of a device calls its processor -> what targets call it.
MACHINES = {
    **{name: "x86_64" for name in ("x86_64", "amd64", "x86-64")},
    **{name: "aarch64" for name in ("aarch64", "arm64", "arm64-v8a")},
}


@dataclass(frozen=True)
class Ended:
    """A program that has ended, and what it wrote."""

    code: int
    stdout: bytes
    stderr: bytes

    def checked(self, stage: str) -> bytes:
        """Its output.

        Raises:
            DeviceError: it ended with another code than 0; has its last words.
        """
        if self.code:
            raise DeviceError(f"{stage}: {self.words} (exit code {self.code})")
        return self.stdout

    @property
    def words(self) -> str:
        """The last line that it wrote, errors first."""
        for written in (self.stderr, self.stdout):
            lines = printable(written).splitlines()
            if lines:
                return lines[-1].removeprefix("keeper: ")
        return "it said nothing"


class Stream(ABC):
    """A running program, for use in a ``with`` block: leaving it closes the program's input.

    All methods raise ``LostError`` where the connection is lost.
    """

    @abstractmethod
    def line(self, limit_s: float) -> str:
        """The next line of its output, without its end; empty when there is no more.

        Raises:
            TimeoutError: there is none yet.
        """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Give it something to read."""

    @abstractmethod
    def end_input(self) -> None:
        """There is no more to read."""

    @abstractmethod
    def result(self, limit_s: float) -> Ended:
        """Wait for its end; the output is what was not read as lines.

        Raises:
            TimeoutError: it goes on.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it; harmless after its end."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


class Transport(ABC):
    """An open connection.

    Programs are given as words, which are quoted: none is ever read as a command. All methods
    raise ``LostError`` where the connection is lost, and ``DeviceError`` where time is over.

    Attributes:
        name: as given to ``connect``, such as ``ssh:pi@10.0.0.7``.
        target: what programs are built for, of ``kernels.TARGETS``.
        folder: where files go.
        lock: a file that everybody who measures on this device locks.
    """

    name: str
    target: str
    folder: str
    lock: str

    @abstractmethod
    def start(self, words: Sequence[str]) -> Stream:
        """Run a program beside us."""

    @abstractmethod
    def properties(self) -> dict[str, str]:
        """What only this kind of device tells: its SoC, the version of Android, its battery."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""

    def run(self, words: Sequence[str], limit_s: float = SHORT_S, stdin: bytes = b"") -> Ended:
        """Run a program and wait for its end."""
        with self.start(words) as stream:
            try:
                stream.write(stdin)
                stream.end_input()
                return stream.result(limit_s)
            except TimeoutError as error:
                raise DeviceError(f"{self.name}: {words[0]} took over {limit_s:g} s") from error

    def push(self, local: Path, remote: str) -> None:
        """Copy a file there; it may be half there if this fails."""
        words = ["dd", f"of={remote}", "bs=65536"]
        self.run(words, LONG_S, local.read_bytes()).checked(f"{self.name}: push {local.name}")

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from there."""
        ended = self.run(["cat", "--", remote], LONG_S)
        local.write_bytes(ended.checked(f"{self.name}: pull {PurePosixPath(remote).name}"))

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


def target_of(machine: str, system: str, name: str) -> str:
    """The target's name.

    Args:
        machine: as ``uname -m`` says, or Android's ABI.
        system: ``linux`` or ``android``.
        name: of the device, for the message.

    Raises:
        InputError: nothing is built for such a machine.
    """
    if machine not in MACHINES or system not in ("linux", "android"):
        raise InputError(
            f"{name}: got a {machine or 'nameless'} processor under {system}; edgeprune measures "
            "on 64-bit Arm and x86 under Linux or Android"
        )
    return f"{MACHINES[machine]}-{system}"


def printable(written: bytes) -> str:
    """What a device wrote, safe for a terminal."""
    text = written.decode(errors="replace").strip()
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)
