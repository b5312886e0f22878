"""A task made of two files: a saved model and arrays of its inputs."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgeprune.errors import InputError
from edgeprune.task import (
    Batch,
    Predict,
    Task,
    batches,
    check_tensor,
    dtype_name,
    one_line,
    output_tuple,
)

_Wanted: TypeAlias = dict[str, tuple[torch.dtype, list[int | None]]]
"""Per input of a saved model: its dtype and its sizes beyond the batch dimension."""


class ModelFileTask(Task):
    """A saved model and an array file, without any Python of the user's.

    A fifth of the examples (chosen by a fixed seed) is held out; the score is the mean cosine of
    the outputs there to the original model's outputs, 0 where they point apart.

    Args:
        model_path: a ``.pt2`` of ``torch.export.save``, its first dimension dynamic.
        calibration_path: a ``.npz`` with one array per input, ``[examples, ...]``, named like the
            inputs or ``arr_0``, ``arr_1``, … in their order.

    Raises:
        InputError: a file cannot be read or does not fit the other.
    """

    score_name = "cosine to the original"

    def __init__(self, model_path: str | Path, calibration_path: str | Path) -> None:
        source = Path(model_path)
        self.name = source.stem
        self._model, wanted, self._batch = _read_model(source)
        self.input_names = tuple(wanted)
        arrays = _read_arrays(Path(calibration_path), wanted)
        order = torch.randperm(len(arrays[0]), generator=torch.Generator().manual_seed(0))
        held = max(1, len(order) // 5)
        self._held_out = tuple(array[order[:held]] for array in arrays)
        self._calibration = tuple(array[order[held:]] for array in arrays)

    def model(self) -> nn.Module:
        return self._model

    def example_inputs(self) -> Batch:
        return tuple(array[:2] for array in self._calibration)

    def calibration(self) -> Iterable[Batch]:
        return batches(self._calibration, self._batch)

    def evaluate(self, predict: Predict) -> float:
        got = self._outputs(predict)
        cosines = [
            nn.functional.cosine_similarity(ours.flatten(1).double(), wanted.flatten(1).double())
            for ours, wanted in zip(got, self._original, strict=True)
        ]
        return max(0.0, float(torch.stack(cosines).mean()))

    @cached_property
    def _original(self) -> Batch:
        return self._outputs(lambda inputs: self._model(*inputs))

    def _outputs(self, predict: Predict) -> Batch:
        """Each output for all held-out examples."""
        with torch.inference_mode():
            rows = batches(self._held_out, self._batch)
            outputs = [output_tuple(predict(inputs)) for inputs in rows]
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))


class _ByPosition(nn.Module):
    """A saved model that takes keywords or nested inputs, with flat tensors in and out."""

    def __init__(self, exported: ExportedProgram) -> None:
        super().__init__()
        self.inner = exported.module()
        self._in_spec = exported.call_spec.in_spec

    def forward(self, *inputs: Tensor) -> Batch:
        args, kwargs = pytree.tree_unflatten(list(inputs), self._in_spec)
        return tuple(pytree.tree_leaves(self.inner(*args, **kwargs)))


def _read_model(path: Path) -> tuple[nn.Module, _Wanted, int]:
    """The model, what it wants, and a batch size that it takes."""
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)  # it prints a traceback before it raises
        exported = torch.export.load(path)
    except Exception as error:
        raise InputError(
            f"{path}: not a model saved by torch.export.save, or cut short ({one_line(error)})",
            traceback.format_exc(),
        ) from error
    finally:
        log.setLevel(level)
    inputs = exported.graph_signature.user_inputs
    values: dict[str, Any] = {n.name: n.meta.get("val") for n in exported.graph.nodes}
    wanted: _Wanted = {}
    upper = 16
    for name in inputs:
        value = values.get(str(name))
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise InputError(f"{path}: input {name!r} is no tensor with a batch dimension")
        largest = _largest(exported, value.shape[0])
        if largest < 2:
            raise InputError(
                f"{path}: input {name!r} fixes the batch at {value.shape[0]}. Export it again with "
                "dynamic_shapes={...: {0: torch.export.Dim('batch')}} and a batch of 2 or more."
            )
        upper = int(min(upper, largest))
        sizes: list[int | None] = [
            size if isinstance(size, int) else None for size in value.shape[1:]
        ]
        wanted[str(name)] = (value.dtype, sizes)
    args, kwargs = pytree.tree_unflatten(list(inputs), exported.call_spec.in_spec)
    flat = not kwargs and all(isinstance(arg, str) for arg in args)
    model = exported.module() if flat else _ByPosition(exported)
    return model, wanted, upper


def _largest(exported: ExportedProgram, size: object) -> float:
    """How large a dimension may get; 0 if it is fixed."""
    if not isinstance(size, torch.SymInt):
        return 0
    limits = exported.range_constraints.get(size.node.expr)
    return 0 if limits is None else float(limits.upper)


def _read_arrays(path: Path, wanted: _Wanted) -> Batch:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such calibration file") from error
    except Exception as error:
        raise InputError(
            f"{path}: not a whole .npz of plain arrays ({one_line(error)}). "
            "Write it with numpy.savez.",
            traceback.format_exc(),
        ) from error
    numbered = [f"arr_{i}" for i in range(len(wanted))]
    keys = list(wanted) if set(arrays) == set(wanted) else numbered
    if set(arrays) != set(keys):
        raise InputError(
            f"{path}: got arrays {', '.join(arrays) or 'none'}, "
            f"wanted {', '.join(wanted)} (or {', '.join(numbered)} in that order)"
        )
    tensors = []
    for key, (dtype, tail) in zip(keys, wanted.values(), strict=True):
        where = f"{path}: array {key!r}"
        if arrays[key].dtype.kind not in "biuf" or arrays[key].ndim == 0:
            raise InputError(
                f"{where}: got {arrays[key].dtype} of shape {list(arrays[key].shape)}, "
                f"wanted {dtype_name(dtype)} [examples, ...]"
            )
        tensor = torch.from_numpy(arrays[key])
        check_tensor(tensor, dtype, tail, where)
        tensors.append(tensor)
    counts = {len(tensor) for tensor in tensors}
    if len(counts) != 1 or min(counts) < 4:
        listed = ", ".join(str(len(tensor)) for tensor in tensors)
        raise InputError(f"{path}: got {listed} examples, wanted 4 or more, as many in each array")
    return tuple(tensors)
