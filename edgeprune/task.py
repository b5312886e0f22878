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
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import files
from edgeprune.errors import EdgepruneError, InputError

Batch: TypeAlias = tuple[Tensor, ...]
"""The model's inputs in order, each ``[batch, ...]``."""

Predict: TypeAlias = Callable[[Batch], Tensor | Batch]
"""A model in any form (eager, lowered, on a device): a batch of inputs to its output, or to a tuple
where it has several."""

Score: TypeAlias = float | np.ndarray
"""Higher is better: one number, or one per example in a fixed order, whose mean it is.

Two models' numbers per example give a paired interval of their difference in the report.
"""

# What the module of a task file is called: this and the file's stem.
TASK_FILE_MODULE = "edgeprune_task_"

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

    def calibration_labels(self) -> Iterable[Tensor] | None:
        """Labels of the calibration batches, in their order, for criteria that need them.

        Class numbers ``[...]`` for an output ``[..., classes]``, or floats of the output's shape;
        the first output counts. None (the default): such criteria cannot be chosen.
        """
        return None

    @abstractmethod
    def evaluate(self, predict: Predict) -> Score:
        """The score on the whole test split, 0 to 1. Read once, at the end.

        ``predict`` takes batches of any size, on the CPU.
        """

    def validate(self, predict: Predict) -> Score | None:
        """The score on a validation split: candidate plans are chosen by it.

        None (the default): they are chosen by how little they move the outputs.
        """
        return None

    def train_batches(self) -> Iterator[Batch] | None:
        """Endless seeded batches without labels to distil on; None (the default): no distilling."""
        return None

    def source(self) -> dict[str, str]:
        """The keys of ``edgeprune.toml`` that name this task; none if it was typed at a prompt."""
        own = f"{type(self).__module__}:{type(self).__name__}"
        built_in = {place: name for name, place in BUILT_IN.items()}
        if own in built_in:
            return {"task": built_in[own]}
        file = _file(self)
        return {"task": f"{file.absolute()}:{type(self).__name__}"} if file.is_file() else {}

    def content_hash(self) -> str:
        """Changes with the task's code: what was scored by other code is not to be compared."""
        try:
            return files.content_hash(self.name, _file(self).read_text())
        except OSError:  # typed at a prompt
            return files.content_hash(self.name)


class Recorded:
    """A ``predict`` that keeps what its model answered.

    One pass of ``evaluate`` then gives the score and what ``cosines`` compares as well.
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._answers: list[Tensor] = []

    def __call__(self, inputs: Batch) -> Tensor | Batch:
        outputs = self._predict(inputs)
        self._answers.append(output_tuple(outputs)[0])
        return outputs

    @property
    def asked(self) -> bool:
        """Whether the model was asked at all."""
        return bool(self._answers)

    @property
    def answers(self) -> Tensor:
        """The first output for all examples so far, ``[examples, ...]``."""
        return torch.cat(self._answers)


def cosines(answers: Tensor, wanted: Tensor) -> Tensor:
    """Each example's cosine between two models' answers ``[examples, ...]``: ``[examples]``."""
    mine, theirs = (each.reshape(len(each), -1) for each in (answers, wanted))
    return nn.functional.cosine_similarity(mine, theirs)


def predict_all(predict: Predict, inputs: Batch, size: int = 32) -> Tensor:
    """The first output for all ``inputs`` ``[examples, ...]``, computed in batches of ``size``."""
    with torch.inference_mode():
        return torch.cat([output_tuple(predict(batch))[0] for batch in batches(inputs, size)])


def batches(tensors: Batch, size: int) -> Iterator[Batch]:
    """Tensors ``[examples, ...]`` in batches of ``size`` examples, the last one maybe shorter."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


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
    if spec not in BUILT_IN and Path(spec).is_dir():
        raise InputError(f"{spec}: a folder without config.json, which one of Hugging Face has.")
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


@contextmanager
def blaming(task: Task, method: str) -> Iterator[None]:
    """Around a call of the user's own method.

    Raises:
        InputError: it failed (traceback in ``detail``); what we ourselves raise passes.
    """
    try:
        yield
    except EdgepruneError:
        raise
    except Exception as error:
        raise InputError(
            f"task {task.name}: {method}() raised {_one_line(error)}{_line_in(error, _file(task))}",
            traceback.format_exc(),
        ) from error


def train_batches(task: Task) -> Iterator[Batch] | None:
    """The task's training batches, blamed on it where they fail; None if it has none."""
    with blaming(task, "train_batches"):
        stream = task.train_batches()
    return None if stream is None else _drawn(task, iter(stream))


def _drawn(task: Task, stream: Iterator[Batch]) -> Iterator[Batch]:
    while True:
        with blaming(task, "train_batches"):
            batch = next(stream, None)
        if batch is None:
            return
        yield batch


def _file(task: Task) -> Path:
    return Path(getattr(sys.modules.get(type(task).__module__), "__file__", None) or "")


def check_task(task: Task) -> tuple[Batch, ...]:
    """Check that example inputs and calibration batches are of one shape and finite.

    Returns:
        The calibration batches.

    Raises:
        InputError: names the first batch and input that do not fit, got and wanted.
    """
    with blaming(task, "example_inputs"):
        examples = task.example_inputs()
    names = task.input_names or tuple(f"input {i}" for i in range(len(examples)))
    if len(names) != len(examples):
        raise InputError(
            f"task {task.name}: {len(names)} input_names for {len(examples)} example inputs"
        )
    where = f"task {task.name}: example_inputs()"
    check_batch(examples, examples, names, where)
    if len(examples[0]) < 2:
        raise InputError(f"{where}: got a batch of 1, wanted at least 2 examples")
    with blaming(task, "calibration"):
        calibration = tuple(task.calibration())
    for count, batch in enumerate(calibration, start=1):
        check_batch(batch, examples, names, f"task {task.name}: calibration batch {count}")
    if not calibration:
        raise InputError(f"task {task.name}: calibration() gives no batch, wanted at least one")
    return calibration


def check_labels(task: Task, calibration: Sequence[Batch]) -> tuple[Tensor, ...] | None:
    """The labels of the calibration batches; None if the task gives none.

    Raises:
        InputError: they are not as many as the batches and their examples.
    """
    with blaming(task, "calibration_labels"):
        given = task.calibration_labels()
        labels = None if given is None else tuple(given)
    if labels is None:
        return None
    wanted = [len(batch[0]) for batch in calibration]
    if [len(each) for each in labels] != wanted:
        raise InputError(
            f"task {task.name}: calibration_labels() gives {len(labels)} batches of "
            f"{sum(map(len, labels))} labels, wanted {len(wanted)} of {sum(wanted)}, "
            "as calibration() gives examples"
        )
    return labels


def check_batch(batch: object, examples: Batch, names: Sequence[str], where: str) -> None:
    """Check that ``batch`` is like ``examples`` in all but its number of examples, and finite.

    Args:
        batch: what the user gave.
        examples: the inputs as the model takes them.
        names: what the inputs are called, for the message.
        where: which batch this is, for the message.

    Raises:
        InputError: names the input that does not fit, got and wanted.
    """
    if not isinstance(batch, (tuple, list)) or not len(batch) == len(examples) > 0:
        got = f"{len(batch)} inputs" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise InputError(f"{where}: got {got}, wanted a tuple of {len(examples) or 'the'} tensors")
    for tensor, example, name in zip(batch, examples, names, strict=True):
        _check_tensor(tensor, example, f"{where}, {name}")
    if len({len(tensor) for tensor in batch}) != 1:
        sizes = ", ".join(str(len(tensor)) for tensor in batch)
        raise InputError(f"{where}: inputs differ in their number of examples ({sizes})")


def _check_tensor(tensor: object, example: Tensor, where: str) -> None:
    if not isinstance(tensor, Tensor) or tensor.dim() == 0:
        raise InputError(f"{where}: got {type(tensor).__name__}, wanted a tensor [examples, ...]")
    if tensor.shape[1:] != example.shape[1:]:
        wanted = ", ".join(["examples", *map(str, example.shape[1:])])
        raise InputError(f"{where}: got shape {list(tensor.shape)}, wanted [{wanted}]")
    if tensor.dtype != example.dtype:
        raise InputError(f"{where}: got {tensor.dtype}, wanted {example.dtype}. Convert it first.")
    if not tensor.isfinite().all():
        bad = int((~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[0])
        raise InputError(f"{where}: NaN or infinity in example {bad}, wanted finite numbers")


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
    name = f"{TASK_FILE_MODULE}{path.stem}"
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
            f"{path}: running the file raised {_one_line(error)}{_line_in(error, path)}",
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
            f"task {spec}: {task_class.__name__}() raised "
            f"{_one_line(error)}{_line_in(error, path)}",
            traceback.format_exc(),
        ) from error


def _line_in(error: BaseException, path: Path) -> str:
    """`` (line 7)``: the last line of the user's file that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f" (line {lines[-1]})" if lines else ""


def _one_line(error: BaseException) -> str:
    """The error's type and the first line of what it says."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
