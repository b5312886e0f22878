"""tflite-runtime, LiteRT's old name, in a Python environment of its own: it needs numpy 1.

Apps still ship it. Its last release, 2.14, runs int8 files with a scale per channel, as the
converters of today write them, and gives wrong numbers without a word.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgeprune import console
from edgeprune.cache import cache_dir
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.task import Batch

VERSION = "2.14.0"
NEWEST_PYTHON = (3, 11)
PACKAGES = (f"tflite-runtime=={VERSION}", "numpy<2")
INSTALL_LIMIT_S, RUN_LIMIT_S = 600.0, 600.0

_SCRIPT = """
import sys
import numpy as np
from tflite_runtime.interpreter import Interpreter

model, given, found = sys.argv[1:]
held = np.load(given)
columns = [held[name] for name in sorted(held.files)]
interpreter = Interpreter(model, num_threads=1)
interpreter.allocate_tensors()
rows = []
for row in range(len(columns[0])):
    for slot, column in zip(interpreter.get_input_details(), columns):
        interpreter.set_tensor(slot["index"], column[row : row + 1].astype(slot["dtype"]))
    interpreter.invoke()
    slots = interpreter.get_output_details()
    rows.append([interpreter.get_tensor(slot["index"]) for slot in slots])
np.savez(found, **{f"{i:03d}": np.concatenate(column) for i, column in enumerate(zip(*rows))})
"""


def run_in_tflite_runtime(path: Path, inputs: Batch) -> Batch:
    """The outputs of a ``.tflite`` in tflite-runtime, row by row at batch 1.

    Args:
        inputs: any number of examples.

    Raises:
        InputError: tflite-runtime cannot be had here.
        EdgepruneError: it refuses the file.
    """
    python = environment()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        given, found = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, *(value.detach().numpy() for value in inputs))
        words = (str(python), "-c", _SCRIPT, str(path), str(given), str(found))
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=RUN_LIMIT_S, env=_clean()
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            raise EdgepruneError(
                f"{path}: tflite-runtime {VERSION} cannot run it ({reason[:300]}). "
                "Files for it are lowered with --delegate off.",
                detail=done.stderr,
            )
        with np.load(found) as held:
            return tuple(torch.from_numpy(held[name]) for name in sorted(held.files))


def environment() -> Path:
    """The interpreter of the environment, which is made once and kept in the cache.

    Raises:
        InputError: no tflite-runtime for this Python, or it cannot be installed.
    """
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest, here = (".".join(map(str, v)) for v in (NEWEST_PYTHON, sys.version_info[:2]))
        raise InputError(
            f"tflite-runtime {VERSION} has packages for Python up to {newest}, this is {here}. "
            f"Run edgeprune in Python {newest}."
        )
    folder = cache_dir() / f"tflite-runtime-{VERSION}"
    python = folder / "bin" / "python"
    if not python.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with console.progress(f"installing tflite-runtime {VERSION}", 1) as advance:
            _make(folder)
            advance()
    return python


def _make(folder: Path) -> None:
    """Make it aside, so that no half of one is ever there."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as aside:
        new = Path(aside, folder.name)
        pip = (str(new / "bin" / "python"), "-m", "pip", "install", "--quiet")
        for words in (
            (sys.executable, "-m", "venv", str(new)),
            (*pip, "--disable-pip-version-check", "--only-binary", ":all:", *PACKAGES),
        ):
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, env=_clean()
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise InputError(
                    f"tflite-runtime {VERSION} cannot be installed: {reason[:300]}",
                    detail=done.stderr,
                )
        shutil.move(new, folder)


def _clean() -> dict[str, str]:
    """Our environment without what would lead to this Python's packages."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
