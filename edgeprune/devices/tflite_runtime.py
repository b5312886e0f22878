"""tflite-runtime, LiteRT's old name, in a Python environment of its own: it needs numpy 1.

Apps still ship it. Its last release, 2.14, runs int8 files with a scale per channel, as the
converters of today write them, and gives wrong numbers without a word.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgeprune.devices.environment import Environment, clean
from edgeprune.errors import EdgepruneError
from edgeprune.task import Batch

VERSION = "2.14.0"
ENVIRONMENT = Environment("tflite-runtime", VERSION, ("numpy<2",), newest_python=(3, 11))
RUN_LIMIT_S = 600.0

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
    python = ENVIRONMENT.python()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        given, found = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, *(value.detach().numpy() for value in inputs))
        words = (str(python), "-c", _SCRIPT, str(path), str(given), str(found))
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=RUN_LIMIT_S, env=clean()
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
