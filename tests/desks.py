"""A desk: a folder with a lowered file, its inputs, and the runner to be asked about it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgeprune.devices.bundle import Bundle
from edgeprune.devices.runner import (
    ANSWER,
    RUNTIMES,
    Answer,
    Given,
    Job,
    Subject,
    job_text,
    read_answer,
)


@dataclass(frozen=True)
class Desk:
    """See above.

    Attributes:
        emulator: words before the runner's.
    """

    folder: Path
    bundle: Bundle
    emulator: tuple[str, ...] = ()

    def subject(
        self, file: str, batch: Sequence[Tensor], name: str = "model", signature: str = ""
    ) -> Subject:
        """A lowered file on inputs of any number of rows, which are written here."""
        given = []
        for number, value in enumerate(batch):
            place = f"input {number}"
            (self.folder / place).write_bytes(value.numpy().tobytes())
            kind = str(value.dtype).removeprefix("torch.")
            given.append(Given(kind, place, (1, *value.shape[1:])))
        return Subject(name, file, tuple(given), signature)

    def job(self, kind: str, *subjects: Subject, delegate: bool = True, **more: object) -> Job:
        """With the bundle's libraries for the files' runtime."""
        runtime = RUNTIMES[Path(subjects[0].file).suffix]
        libraries = tuple(map(str, self.bundle.loaded_for(runtime, delegate)))
        return Job(kind, runtime, subjects, libraries, **more)  # type: ignore[arg-type]

    def run(self, job: Job) -> subprocess.CompletedProcess[str]:
        """The runner, ended."""
        (self.folder / ANSWER).unlink(missing_ok=True)
        (self.folder / "job").write_bytes(job_text(job))
        words = [*self.emulator, str(self.bundle.program), str(self.folder / "job")]
        return subprocess.run(words, capture_output=True, text=True)

    def answer(self, job: Job) -> Answer:
        """What it found."""
        ended = self.run(job)
        assert ended.returncode == 0, ended.stderr
        return read_answer(self.folder / ANSWER)

    def output(self, job: Job) -> NDArray[np.float32]:
        """The file's first output on all rows."""
        (found,) = self.answer(job).found
        data = np.frombuffer((self.folder / "0.0").read_bytes(), found.outputs[0].type)
        return data.reshape(found.rows, *found.outputs[0].shape[1:])
