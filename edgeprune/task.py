"""What the user wants pruned: a model, some data, and how to score it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import InputError

Batch: TypeAlias = tuple[Tensor, ...]
"""The model's inputs in order, each ``[batch, ...]``."""

Predict: TypeAlias = Callable[[Batch], Tensor | Batch]
"""A model in any form (eager, lowered, on a device): one batch of inputs to its output(s)."""

BUILT_IN = {
    "digits-vit": "edgeprune.tasks.digits_vit:DigitsVit",
    "minilm-20news": "edgeprune.tasks.minilm_20news:MinilmNews",
}


class Task(ABC):
    """What to prune. Subclass it in a file of your own; the constructor takes no arguments.

    Three groups of examples must not overlap: those of ``calibration`` and ``train_batches``,
    those of ``validate``, and those of ``evaluate``.

    Attributes:
        name: shown in reports; the class's name if you give none.
        score_name: what ``evaluate`` returns, such as "accuracy".
        licence: the licence of model and data, copied into the bundle's manifest.
        preprocessing: how raw data becomes inputs, such as "tokenizer: bert-base-uncased
            wordpiece, max 128 tokens", copied into the manifest.
        input_names: one name per input; None takes the names of ``forward``'s parameters.
        output_names: one name per output; None numbers them.
    """

    name: str
    score_name: str = "score"
    licence: str = "not stated"
    preprocessing: str = "not stated"
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

    @abstractmethod
    def model(self) -> nn.Module:
        """The trained model: float32, in eval mode, positional tensor inputs."""

    @abstractmethod
    def example_inputs(self) -> Batch:
        """One batch of at least 2 examples. All but the first dimension is fixed by it."""

    @abstractmethod
    def calibration(self) -> Iterable[Batch]:
        """Batches without labels, shaped like ``example_inputs`` beyond the batch dimension.

        Importance, damage and the least-squares refit are measured on them: 128 to 512 examples
        are plenty. Every call gives the same batches.
        """

    @abstractmethod
    def evaluate(self, predict: Predict) -> float:
        """The score on the test split, 0 to 1, higher is better. Read once, at the end.

        ``predict`` takes batches of any size, on the CPU.
        """

    def validate(self, predict: Predict) -> float | None:
        """The score on a validation split: candidate plans are chosen by it.

        None (the default): they are chosen by how little they move the outputs.
        """
        return None

    def correct(self, predict: Predict) -> np.ndarray | None:
        """Per test example whether it is right: ``bool[examples]``, in a fixed order.

        Two models' answers give a paired interval of their difference. None (the default): the
        score has no such form, and the report shows no interval.
        """
        return None

    def train_batches(self) -> Iterator[Batch] | None:
        """Endless seeded batches without labels to distil on; None (the default): no distilling."""
        return None


def one_by_one(predict: Predict) -> Predict:
    """Let a ``predict`` that takes one example at a time (a lowered model) take any batch."""

    def predict_batch(inputs: Batch) -> Batch:
        rows = zip(*(tensor.split(1) for tensor in inputs), strict=True)
        outputs = [output_tuple(predict(row)) for row in rows]
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))

    return predict_batch


def output_tuple(outputs: Tensor | Sequence[Tensor]) -> Batch:
    """What a ``predict`` returned, as a tuple also when it is one tensor."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def load_task(spec: str) -> Task:
    """Make the task that ``--task`` names. A task file is run: it can do all that you can.

    Args:
        spec: a built-in name, ``path.py:ClassName``, or ``path.py`` with one Task class in it.

    Raises:
        InputError: no such task, or its file or constructor fails (traceback in ``detail``).
    """
    file_spec = re.fullmatch(r"(.+\.py)(?::(.*))?", spec)
    if file_spec:
        path = Path(file_spec[1])
        return _construct(_task_class(path, file_spec[2]), spec, path)
    if spec not in BUILT_IN:
        near = difflib.get_close_matches(spec, BUILT_IN, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Built in: {', '.join(BUILT_IN)}."
        raise InputError(f"task {spec!r}: unknown. {hint} Your own: path.py:ClassName.")
    module_name, class_name = BUILT_IN[spec].split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"task {spec!r}: needs the package {error.name!r}. "
            "Install the built-in tasks: pip install 'edgeprune[tasks]'",
            traceback.format_exc(),
        ) from error
    return _construct(getattr(module, class_name), spec, Path(str(module.__file__)))


def check_task(task: Task) -> None:
    """Check that the calibration batches fit the example inputs and are finite.

    Raises:
        InputError: names the first batch and input that do not fit, got and wanted.
    """
    examples = task.example_inputs()
    if not examples or not all(isinstance(tensor, Tensor) for tensor in examples):
        raise InputError(f"task {task.name}: example_inputs() must be a tuple of tensors")
    names = task.input_names or tuple(f"input {i}" for i in range(len(examples)))
    if len(names) != len(examples):
        raise InputError(
            f"task {task.name}: {len(names)} input_names for {len(examples)} example inputs"
        )
    where = f"task {task.name}: example_inputs()"
    if any(tensor.dim() == 0 or len(tensor) < 2 for tensor in examples):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in examples)
        raise InputError(f"{where}: got {shapes}, wanted a first dimension of at least 2 examples")
    _check_batch(examples, examples, names, where)
    count = 0
    for count, batch in enumerate(task.calibration(), start=1):
        _check_batch(batch, examples, names, f"task {task.name}: calibration batch {count}")
    if not count:
        raise InputError(f"task {task.name}: calibration() gives no batch, wanted at least one")


def batches(arrays: Batch, size: int) -> Iterator[Batch]:
    """Arrays ``[examples, ...]`` as batches of ``size`` examples, the last one maybe shorter."""
    for start in range(0, len(arrays[0]), size):
        yield tuple(array[start : start + size] for array in arrays)


def check_tensor(
    tensor: Tensor, dtype: torch.dtype, tail: Sequence[int | None], where: str
) -> None:
    """Check one input tensor ``[examples, ...]`` of a user's.

    Args:
        tensor: what came.
        dtype: the wanted type.
        tail: the wanted sizes beyond the first dimension, None where any size will do.
        where: which tensor this is, for the message.

    Raises:
        InputError: another shape or type, or a number in it is not finite.
    """
    sizes = tensor.shape[1:]
    fits = tensor.dim() == 1 + len(tail) and all(
        want is None or want == size for size, want in zip(sizes, tail, strict=True)
    )
    if not fits:
        wanted = ", ".join(["examples", *("any" if size is None else str(size) for size in tail)])
        raise InputError(f"{where}: got shape {list(tensor.shape)}, wanted [{wanted}]")
    if tensor.dtype != dtype:
        got, wanted = dtype_name(tensor.dtype), dtype_name(dtype)
        raise InputError(f"{where}: got {got}, wanted {wanted}. Convert it: .astype({wanted!r})")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        bad = int((~tensor.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(f"{where}: NaN or infinity in example {bad}, wanted finite numbers")


def dtype_name(dtype: torch.dtype) -> str:
    """The type as numpy calls it: ``float32``."""
    return str(dtype).removeprefix("torch.")


def one_line(error: BaseException) -> str:
    """The error's type and the first line of what it says."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _task_class(path: Path, class_name: str | None) -> type[Task]:
    module = _import_file(path)
    if class_name is not None:
        found = getattr(module, class_name, None)
        if not (isinstance(found, type) and issubclass(found, Task)):
            what = "no class" if found is None else "not a subclass of edgeprune.task.Task:"
            others = ", ".join(_own_tasks(module)) or "none"
            raise InputError(f"{path}: {what} {class_name!r}. Task classes in it: {others}.")
        return found
    classes = _own_tasks(module)
    if len(classes) != 1:
        listed = ", ".join(classes) or "none"
        raise InputError(
            f"{path}: wanted one class derived from edgeprune.task.Task, found {listed}. "
            f"Name one: {path}:ClassName."
        )
    return next(iter(classes.values()))


def _own_tasks(module: ModuleType) -> dict[str, type[Task]]:
    return {
        name: found
        for name, found in vars(module).items()
        if isinstance(found, type)
        and issubclass(found, Task)
        and found.__module__ == module.__name__
    }


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: no such task file (looked in {path.parent.resolve()})")
    name = f"edgeprune_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:  # as for any script, so that the file can import its neighbours
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(
            f"{path}: running the file raised {one_line(error)}{_line_in(error, path)}",
            traceback.format_exc(),
        ) from error
    return module


def _construct(task_class: type[Task], spec: str, path: Path) -> Task:
    missing = sorted(task_class.__abstractmethods__)
    if missing:
        listed = ", ".join(f"{name}()" for name in missing)
        raise InputError(f"task {spec}: {task_class.__name__} lacks {listed}")
    try:
        return task_class()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"task {spec}: {task_class.__name__}() raised {one_line(error)}{_line_in(error, path)}",
            traceback.format_exc(),
        ) from error


def _line_in(error: BaseException, path: Path) -> str:
    """`` (line 7)``: the last line of the user's file that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return f" (line {lines[-1]})" if lines else ""


def _check_batch(batch: object, examples: Batch, names: Sequence[str], where: str) -> None:
    if not isinstance(batch, (tuple, list)) or len(batch) != len(examples):
        got = f"{len(batch)} inputs" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise InputError(f"{where}: got {got}, wanted a tuple of {len(examples)} tensors")
    for tensor, example, name in zip(batch, examples, names, strict=True):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{where}, {name}: got {type(tensor).__name__}, wanted a tensor")
        check_tensor(tensor, example.dtype, list(example.shape[1:]), f"{where}, {name}")
    if len({len(tensor) for tensor in batch}) != 1:
        sizes = ", ".join(str(len(tensor)) for tensor in batch)
        raise InputError(f"{where}: inputs differ in their number of examples ({sizes})")
