"""Runs one lowered file in the runtime that this Python has: needs numpy and that alone.

    _compatibility_cell.py FILE INPUTS.npz OUTPUTS.npz [LIBRARY]

Writes the outputs of every example and says ``ready``; then each line in is answered with the
milliseconds of processor time of one more run: beside other work, wall time told more of that.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARMUP_RUNS = 3
Run = Callable[[Sequence[np.ndarray]], list[Any]]


def open_tflite(path: str, library: str) -> Run:
    try:
        from ai_edge_litert.interpreter import Interpreter, load_delegate
    except ImportError:  # its old name
        from tflite_runtime.interpreter import Interpreter, load_delegate

    ours = [load_delegate(library)] if library else None
    interpreter = Interpreter(path, num_threads=1, experimental_delegates=ours)
    interpreter.allocate_tensors()
    if ours and not _claimed(ours[0]):
        raise RuntimeError("our delegate is loaded and runs nothing")
    given, taken = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: Sequence[np.ndarray]) -> list[Any]:
        for slot, value in zip(given, inputs, strict=True):
            interpreter.set_tensor(slot["index"], value.astype(slot["dtype"]))
        interpreter.invoke()
        return [interpreter.get_tensor(slot["index"]) for slot in taken]

    return run


def _claimed(delegate: Any) -> int:
    count = delegate._library.ep_litert_claimed
    count.argtypes = [ctypes.c_void_p]
    return int(count(delegate._get_native_delegate_pointer()))


def open_pte(path: str, library: str) -> Run:
    import torch

    inside = "executorch/extension/pybindings"
    folder = next(each for entry in sys.path if (each := Path(entry, inside)).is_dir())
    name = "_C" if any(folder.glob("_C.*")) else "_portable_lib"
    runtime = importlib.import_module(f"{inside.replace('/', '.')}.{name}")
    runtime._unsafe_reset_threadpool(1)
    if library:
        ctypes.CDLL(library)
    program = runtime._load_for_executorch(path)

    def run(inputs: Sequence[np.ndarray]) -> list[Any]:
        outputs: list[Any] = program.run_method("forward", [torch.from_numpy(x) for x in inputs])
        return outputs

    return run


def main(path: str, given: str, found: str, library: str = "") -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # The libraries print; answers get the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with np.load(given) as held:
        columns = [held[name] for name in sorted(held.files)]
    examples = [[column[row : row + 1] for column in columns] for row in range(len(columns[0]))]
    run = (open_pte if path.endswith(".pte") else open_tflite)(path, library)
    rows = [[np.array(each) for each in run(inputs)] for inputs in examples]
    outputs = zip(*rows, strict=True)
    np.savez(found, **{f"{i:03d}": np.concatenate(each) for i, each in enumerate(outputs)})
    for _ in range(WARMUP_RUNS):
        run(examples[0])
    print("ready", file=answers)
    for _ in sys.stdin:
        started = time.process_time()
        run(examples[0])
        print((time.process_time() - started) * 1e3, file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
