"""ExecuTorch in the worker."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from edgeprune.devices.runtimes.runtime import (
    OURS,
    Event,
    Run,
    events_by_name,
    register,
    xnnpack_operator,
)
from edgeprune.errors import InputError

_CONTAINERS = {"DELEGATE_CALL", "OPERATOR_CALL", "Method::execute", "Method::init"}
_NATIVE = re.compile(r"native_call_(?:native_)?_?(.+?)(?:\.\w+)?")


@register(".pte")
class Executorch:
    """The runtime, its thread pool set."""

    def __init__(self, threads: int) -> None:
        # The compiled module itself: the wrapper around it imports ExecuTorch's compiler, which
        # takes 3 s and 100 MB.
        import torch  # noqa: F401  # the module below links against it
        from executorch.extension.pybindings import _C

        _C._unsafe_reset_threadpool(threads)

    def prepare(self, path: str, signature: str = "") -> Callable[[], ExecutorchMethod]:
        """See ``Runtime.prepare``.

        Raises:
            InputError: a signature was asked for.
        """
        from edgeprune.kernels.load import load_for_executorch

        if signature:
            raise InputError(f"{path}: got signature '{signature}', but a .pte has one method")
        load_for_executorch(path)
        return partial(ExecutorchMethod, path)

    def trace(
        self, path: str, inputs: Sequence[np.ndarray], runs: int, signature: str = ""
    ) -> list[Event]:
        """See ``Runtime.trace``."""
        from executorch.devtools import Inspector

        self.prepare(path)
        method = ExecutorchMethod(path, traced=True)
        run = method.bind(inputs)
        for _ in range(runs):
            run()
        with tempfile.TemporaryDirectory() as folder:
            trace = os.path.join(folder, "trace.etdump")
            method.program.write_etdump_result_to_file(trace, os.path.join(folder, "debug"))
            frame: Any = Inspector(etdump_path=trace).to_dataframe()
        entries = zip(frame["event_name"].astype(str), frame["p50 (ms)"], strict=True)
        return named_events((name, float(ms), 1) for name, ms in entries)


class ExecutorchMethod:
    """A ``.pte``'s forward method."""

    def __init__(self, path: str, traced: bool = False) -> None:
        from executorch.extension.pybindings import _C

        # A debug buffer of 1 MB aborted the runtime (1.5.1); timing needs none.
        self.program = _C._load_program(
            path,
            enable_etdump=traced,
            debug_buffer_size=0,
            program_verification=_C.Verification.InternalConsistency,
        )
        self._method = self.program.load_method("forward")

    def bind(self, inputs: Sequence[np.ndarray]) -> Run:
        """See ``Method.bind``."""
        import torch

        tensors = [torch.from_numpy(each) for each in inputs]
        return partial(self._method.call, tensors)


def named_events(entries: Iterable[tuple[str, float, int]]) -> list[Event]:
    """ExecuTorch's ``(event, ms, calls)`` under our names, without what only contains others."""
    # A delegate numbers its events of one name.
    plain = ((event.partition(" #")[0], ms, calls) for event, ms, calls in entries)
    return events_by_name((each for each in plain if not _is_container(each[0])), _operator)


def _is_container(event: str) -> bool:
    return event in _CONTAINERS or event.startswith("Program::")


def _operator(event: str) -> tuple[str, str]:
    native = _NATIVE.fullmatch(event)
    if native:
        return native.group(1), "cpu"
    return (OURS[event], "edgeprune") if event in OURS else (xnnpack_operator(event), "xnnpack")
