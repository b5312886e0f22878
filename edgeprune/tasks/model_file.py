"""A task made of two files: a saved model and arrays of its inputs."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import files
from edgeprune.errors import InputError
from edgeprune.export.folder import capture_folder, is_folder, read_folder
from edgeprune.program.capture import from_exported, load_exported
from edgeprune.program.program import Program
from edgeprune.task import Batch, Predict, Score, Task, batches, check_batch, cosines, predict_all

FEWEST_EXAMPLES = 10
"""A fifth of fewer would be one example to score on."""


class ModelFileTask(Task):
    """A saved model and an array file, without any Python of the user's.

    Two fifths of the examples, chosen by a fixed seed, are held out, half of them for validation
    and half for the test; the score is the mean cosine of the outputs there to the original
    model's outputs (the first output, if it has several).

    Args:
        model_path: a ``.pt2`` of ``torch.export.save``, its first dimension dynamic, or a Hugging
            Face folder.
        calibration_path: a ``.npz`` with one array per input, ``[examples, ...]``, under the
            input's name.

    Raises:
        InputError: a file cannot be read or does not fit the other.
    """

    score_name = "cosine to the original"

    def __init__(self, model_path: str | Path, calibration_path: str | Path) -> None:
        self._files = Path(model_path), Path(calibration_path)
        self.name = Path(model_path).stem
        program = _read_model(Path(model_path))
        self.input_names, self.output_names = program.input_names, program.output_names
        self.licence = program.meta.get("licence", self.licence)
        self.preprocessing = program.meta.get("preprocessing", self.preprocessing)
        self._model = program.module
        arrays = _read_arrays(Path(calibration_path), program)
        order = torch.randperm(len(arrays[0]), generator=torch.Generator().manual_seed(0))
        held = len(order) // 5
        self._test = tuple(array[order[:held]] for array in arrays)
        self._validation = tuple(array[order[held : 2 * held]] for array in arrays)
        self._calibration = tuple(array[order[2 * held :]] for array in arrays)

    def model(self) -> nn.Module:
        return self._model

    def example_inputs(self) -> Batch:
        return tuple(array[:2] for array in self._calibration)

    def calibration(self) -> Iterable[Batch]:
        return batches(self._calibration, 16)

    def evaluate(self, predict: Predict) -> Score:
        return _cosines(predict, self._test, self._test_answers)

    def validate(self, predict: Predict) -> Score:
        return _cosines(predict, self._validation, self._validation_answers)

    def source(self) -> dict[str, str]:
        model, calibration = (str(file.absolute()) for file in self._files)
        return {"model": model, "calibration": calibration}

    def content_hash(self) -> str:
        return files.content_hash(*(_hash_of(path) for path in self._files))

    @cached_property
    def _test_answers(self) -> Tensor:
        return predict_all(lambda inputs: self._model(*inputs), self._test)

    @cached_property
    def _validation_answers(self) -> Tensor:
        return predict_all(lambda inputs: self._model(*inputs), self._validation)


def _hash_of(path: Path) -> str:
    """Of a file, or of what lies in a folder."""
    if path.is_file():
        return files.sha256_of(path)
    inside = sorted(each for each in path.iterdir() if each.is_file())
    return files.content_hash([(each.name, files.sha256_of(each)) for each in inside])


def _cosines(predict: Predict, inputs: Batch, wanted: Tensor) -> np.ndarray:
    # Below 0 is no better than 0, where a score starts.
    return cosines(predict_all(predict, inputs), wanted).clamp(min=0).numpy()


def _read_model(path: Path) -> Program:
    if is_folder(path):
        return capture_folder(read_folder(path))
    exported, notes = load_exported(path)
    known = notes or {}
    if notes is not None:
        files.check_version(path, notes.get("version"))
    program = from_exported(
        exported, known.get("input_names"), known.get("output_names"), known.get("meta")
    )
    for node in exported.graph.nodes:
        if node.name in exported.graph_signature.user_inputs:
            size = node.meta["val"].shape[0]
            if isinstance(size, int):
                raise InputError(
                    f"{path}: input {node.name!r} fixes the batch at {size}. Export it again "
                    "with dynamic_shapes={...: {0: torch.export.Dim('batch')}} and a batch of 2 "
                    "or more."
                )
    return program


def _read_arrays(path: Path, program: Program) -> Batch:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such calibration file") from error
    except Exception as error:  # numpy and zipfile raise many kinds on a file cut short
        raise InputError(
            f"{path}: not a whole .npz of plain arrays. Write it with numpy.savez.",
            traceback.format_exc(),
        ) from error
    if set(arrays) != set(program.input_names):
        raise InputError(
            f"{path}: got arrays {', '.join(arrays) or 'none'}, "
            f"wanted {', '.join(program.input_names)}"
        )
    tensors = tuple(_as_tensor(arrays[name], f"{path}, {name}") for name in program.input_names)
    check_batch(tensors, program.example_inputs, program.input_names, str(path))
    if len(tensors[0]) < FEWEST_EXAMPLES:
        raise InputError(
            f"{path}: got {len(tensors[0])} examples, wanted {FEWEST_EXAMPLES} or more"
        )
    return tensors


def _as_tensor(array: np.ndarray, where: str) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:  # text, objects, uncommon number types
        raise InputError(f"{where}: got an array of {array.dtype}, wanted numbers") from error
