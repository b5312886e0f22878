"""Runs a .tflite file with and without the delegate and compares: needs numpy and a runtime alone.

For machines that have no edgeprune: copy this file, the model and the delegate there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate
except ImportError:  # its old name
    from tflite_runtime.interpreter import Interpreter, load_delegate


def outputs_of(interpreter: Any) -> list[np.ndarray]:
    """Every output, for inputs that are the same each time: normal, or whole numbers below 2."""
    interpreter.allocate_tensors()
    generator = np.random.default_rng(0)
    for slot in sorted(interpreter.get_input_details(), key=lambda slot: slot["name"]):
        value = generator.standard_normal(slot["shape"])
        if not np.issubdtype(slot["dtype"], np.floating):
            value = generator.integers(0, 2, slot["shape"])
        interpreter.set_tensor(slot["index"], value.astype(slot["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(slot["index"]) for slot in interpreter.get_output_details()]


def main() -> int:
    """Print one JSON object; 0 when outputs agree and enough nodes are claimed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("delegate", help="path of the shared library")
    parser.add_argument("--against", help="the file to run without; as it is by default")
    parser.add_argument("--claimed", type=int, default=1, help="nodes that the delegate must run")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference allowed")
    parser.add_argument("--save", help="an .npz file for the outputs with it, to compare machines")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    delegate = load_delegate(os.path.abspath(given.delegate), {"verbose": 1})
    ours = Interpreter(given.model, num_threads=given.threads, experimental_delegates=[delegate])
    count = delegate._library.ep_litert_claimed
    count.argtypes = [ctypes.c_void_p]
    claimed = count(delegate._get_native_delegate_pointer())
    stock = Interpreter(given.against or given.model, num_threads=given.threads)
    outputs = outputs_of(ours)
    difference = max(
        float(np.abs(one.astype(np.float64) - other).max())
        for one, other in zip(outputs, outputs_of(stock), strict=True)
    )
    if given.save:
        np.savez(given.save, *outputs)
    passed = claimed >= given.claimed and difference <= given.tolerance
    result = {"machine": platform.machine(), "runtime": Interpreter.__module__.split(".")[0]}
    result |= {"claimed": claimed, "max_abs_diff": difference, "passed": passed}
    print(json.dumps(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
