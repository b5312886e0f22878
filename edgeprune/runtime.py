"""Lowered files in Python, with our library where they need it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeprune.devices.runtimes import RUNTIMES, runtime_of
from edgeprune.errors import InputError


class Model:
    """A lowered file, ready to run at the shapes it was lowered for.

    Args:
        path: a ``.pte`` or a ``.tflite``.
        threads: of the runtime; ExecuTorch has one pool for all models of a process.
        signature: which of several in a ``.tflite``, such as ``tokens_32``; empty for the first.
    """

    def __init__(self, path: Path, threads: int, signature: str) -> None:
        runtime = RUNTIMES[runtime_of(str(path))](threads)
        self._method = runtime.prepare(str(path), signature)()

    def __call__(self, *inputs: Tensor | np.ndarray) -> tuple[Tensor, ...]:
        """The file's outputs, in the program's order.

        Raises:
            RuntimeError, ValueError: an input has another shape or type than the file wants.
        """
        outputs = self._method.bind([np.asarray(each) for each in inputs])()
        return tuple(torch.from_numpy(np.array(each)) for each in outputs)


def load(path: str | os.PathLike[str], threads: int = 1, signature: str = "") -> Model:
    """Load a lowered file, and our library first if the file needs it.

    Raises:
        InputError: there is no such file, it has no such signature, or the runtime cannot load it.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file. Make it with edgeprune lower.")
    try:
        return Model(file, threads, signature)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{file}: the runtime could not load it ({error})") from error
