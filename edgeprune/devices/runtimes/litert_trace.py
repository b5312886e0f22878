"""LiteRT's compiled model through its C interface: the Python one does not hand out its profiler.

The structures are those of ai-edge-litert 2.3.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.devices.runtimes.runtime import OURS, Event, events_by_name, xnnpack_operator

CPU = 1
WARMUP_RUNS = 3
ALIGNMENT = 64
OPERATOR, DELEGATE_OPERATOR = 2, 8
"""Kinds of events: of LiteRT's own kernels, and of operators inside XNNPACK."""
ELEMENTS = {"float32": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "int8": 9}


class _Layout(ctypes.Structure):
    _fields_ = [("rank", c_uint32), ("sizes", c_int32 * 8), ("strides", c_uint32 * 8)]


class _TensorType(ctypes.Structure):
    _fields_ = [("element", c_int), ("layout", _Layout)]


class _Event(ctypes.Structure):
    _fields_ = [
        *(("tag", c_char_p), ("kind", c_int), ("start_us", c_uint64), ("us", c_uint64)),
        *(("memory_before", c_size_t * 3), ("memory_after", c_size_t * 3)),
        *(("metadata", c_uint64 * 2), ("source", c_int)),
    ]


class CompiledModel:
    """A ``.tflite`` compiled for the CPU with profiling on; it lives as long as the process.

    Args:
        signature: its number in the file.
    """

    def __init__(self, path: str, threads: int, signature: int = 0) -> None:
        import ai_edge_litert

        library = Path(ai_edge_litert.__file__).with_name("libLiteRt.so")
        self._library = ctypes.CDLL(str(library))
        # The runtime keeps both: its options point into the words, and the release is called last.
        self._kept: list[Any] = [ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)]
        environment, model, options = c_void_p(), c_void_p(), c_void_p()
        self._model, self._profiler = c_void_p(), c_void_p()
        self._signature = signature
        self._call("CreateEnvironment", 0, None, byref(environment))
        self._call("CreateModelFromFile", environment, path.encode(), byref(model))
        self._call("CreateOptions", byref(options))
        self._call("SetOptionsHardwareAccelerators", options, CPU)
        self._add(options, "runtime_options_string", "enable_profiling = true\n")
        self._add(options, "xnnpack", f"num_threads = {threads}\n")
        self._call("CreateCompiledModel", environment, model, options, byref(self._model))
        self._call("CompiledModelGetProfiler", self._model, byref(self._profiler))

    def trace(
        self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], runs: int
    ) -> list[Event]:
        """Time per kind of event, the median over runs."""
        given, taken = self._buffers(inputs), self._buffers(outputs)
        sizes = c_size_t(len(inputs)), c_size_t(len(outputs))
        for number in range(WARMUP_RUNS + runs):
            if number == WARMUP_RUNS:
                self._call("StartProfiler", self._profiler)
            self._call(
                *("RunCompiledModel", self._model, c_size_t(self._signature)),
                *(sizes[0], given, sizes[1], taken),
            )
        self._call("StopProfiler", self._profiler)
        return named_events(_medians(self._events(), runs))

    def _events(self) -> list[tuple[str, int, float]]:
        count = c_int()
        self._call("GetNumProfilerEvents", self._profiler, byref(count))
        held = (_Event * count.value)()
        self._call("GetProfilerEvents", self._profiler, count, held)
        return [
            (event.tag.decode(), event.kind, event.us / 1e3)
            for event in held
            if event.kind in (OPERATOR, DELEGATE_OPERATOR)
        ]

    def _add(self, options: c_void_p, name: str, text: str) -> None:
        release, words = self._kept[0], ctypes.create_string_buffer(text.encode())
        self._kept.append(words)
        more = c_void_p()
        pointer = ctypes.cast(words, c_void_p)
        self._call("CreateOpaqueOptions", name.encode(), pointer, release, byref(more))
        self._call("AddOpaqueOptions", options, more)

    def _buffers(self, arrays: Sequence[np.ndarray]) -> Any:
        handles = (c_void_p * len(arrays))()
        for number, array in enumerate(arrays):
            memory = _aligned(array)
            self._kept.append(memory)
            kind = _TensorType(ELEMENTS[array.dtype.name], _Layout(array.ndim))
            kind.layout.sizes[: array.ndim] = array.shape
            address = c_void_p(memory.ctypes.data)
            handle = ctypes.cast(
                byref(handles, number * ctypes.sizeof(c_void_p)), POINTER(c_void_p)
            )
            size = c_size_t(array.nbytes)
            self._call("CreateTensorBufferFromHostMemory", byref(kind), address, size, None, handle)
        return handles

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, f"LiteRt{function}")(*arguments)
        if status:
            raise RuntimeError(f"LiteRt{function} failed with status {status}")


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose memory starts where the runtime wants it."""
    room = np.zeros(array.nbytes + 2 * ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    memory: np.ndarray = room[start : start + array.nbytes].view(array.dtype)
    memory[:] = array.ravel()
    return memory


def _medians(events: list[tuple[str, int, float]], runs: int) -> list[tuple[str, float, int]]:
    """``(event, ms, 1)`` for every operator of a run; all runs have the same, in one order."""
    one = len(events) // runs
    milliseconds = np.array([ms for _, _, ms in events[: one * runs]]).reshape(runs, one)
    names = [f"{tag}" if kind == DELEGATE_OPERATOR else f"cpu {tag}" for tag, kind, _ in events]
    return [
        (name, float(ms), 1)
        for name, ms in zip(names[:one], np.median(milliseconds, axis=0), strict=True)
    ]


def named_events(entries: Iterable[tuple[str, float, int]]) -> list[Event]:
    """LiteRT's ``(event, ms, calls)`` and our delegate's under our names."""
    return events_by_name(entries, _operator)


def _operator(event: str) -> tuple[str, str]:
    ours = OURS.get(event.removeprefix("edgeprune."))
    if ours is not None:
        return ours, "edgeprune"
    word, _, rest = event.partition(" ")
    return (rest.lower(), "cpu") if word == "cpu" else (xnnpack_operator(event), "xnnpack")
