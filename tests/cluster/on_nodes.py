"""What runs on the nodes: a phone that notes when it is taken and left, and work without end."""

from __future__ import annotations

import os
import time
from pathlib import Path

from edgeprune.devices import Device, LocalDevice, register_device

PHONE = "phone"


def never_done(folder: Path) -> None:
    """Says when it has begun, and when it was interrupted."""
    (folder / "begun").touch()
    try:
        while True:
            time.sleep(0.1)
    finally:
        (folder / "interrupted").touch()


class Phone(LocalDevice):
    """This machine; its file of notes has a line for each time."""

    def __init__(self, notes: str, threads: int) -> None:
        super().__init__(threads, None)
        self.name = f"phone:{notes}"
        self._notes = notes

    def _note(self, word: str) -> None:
        with open(self._notes, "a") as stream:
            stream.write(f"{word} {os.getpid()}\n")

    def __enter__(self) -> LocalDevice:
        self._note("taken")
        return super().__enter__()

    def __exit__(self, *reason: object) -> None:
        super().__exit__(*reason)
        self._note("left")


@register_device(PHONE)
def open_phone(address: str, threads: int, cpu: int | None) -> Device:
    """``phone:NOTES``."""
    return Phone(address, threads)
