"""The user's side: task files, their mistakes, and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.program import capture
from edgeprune.task import (
    Batch,
    Predict,
    Recorded,
    Task,
    check_labels,
    check_task,
    cosines,
    load_task,
    predict_all,
)

EXAMPLE = Path(__file__).parents[1] / "examples" / "keyword_spotter.py"

BODY = """
    def model(self): return torch.nn.Linear(3, 2)
    def example_inputs(self): return (torch.ones(2, 3),)
    def calibration(self): return [(torch.ones(4, 3),)]
    def evaluate(self, predict): return 1.0
"""
HEAD = "import torch\nfrom edgeprune.task import Task\n"


def task_file(folder: Path, text: str) -> Path:
    path = folder / "my_task.py"
    path.write_text(text)
    return path


class Linear(Task):
    """A task whose batches a test chooses."""

    input_names: tuple[str, ...] | None = ("sound",)

    def __init__(self, *batches: object, examples: Batch | None = None) -> None:
        self.batches, self.examples = batches, examples or (torch.ones(2, 3),)

    def model(self) -> nn.Module:
        return nn.Linear(3, 2)

    def example_inputs(self) -> Batch:
        return self.examples

    def calibration(self) -> list[Batch]:
        return list(self.batches)  # type: ignore[arg-type]

    def evaluate(self, predict: Predict) -> float:
        return 1.0


def test_a_file_with_one_task_class_is_a_task(tmp_path: Path) -> None:
    path = task_file(tmp_path, f"{HEAD}class Mine(Task):{BODY}")
    for spec in (str(path), f"{path}:Mine"):
        task = load_task(spec)
        assert task.name == "Mine"
        check_task(task)


def test_a_task_file_can_import_the_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_my_task.py").write_text("NAME = 'from beside'\n")
    text = f"{HEAD}from beside_my_task import NAME\nclass Mine(Task):\n    name = NAME{BODY}"
    assert load_task(str(task_file(tmp_path, text))).name == "from beside"


def test_built_in_tasks_are_found_by_name() -> None:
    assert load_task("digits-vit").name == "digits-vit"
    assert load_task("minilm-20news").name == "minilm-20news"


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder without config.json"):
        load_task(str(tmp_path))


def test_an_unknown_task_names_near_misses() -> None:
    with pytest.raises(InputError, match=r"'digit-vit': unknown. Did you mean digits-vit"):
        load_task("digit-vit")


def test_a_missing_task_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"no such task file \(looked in {tmp_path}\)"):
        load_task(str(tmp_path / "absent.py"))


def test_a_task_file_that_raises_names_error_and_line(tmp_path: Path) -> None:
    path = task_file(tmp_path, "import math\n\nmath.sqrt('x')\n")
    with pytest.raises(InputError, match=r"raised TypeError: .* \(line 3\)") as caught:
        load_task(str(path))
    assert "Traceback" in str(caught.value.detail)


def test_a_task_file_that_exits_does_not_end_edgeprune(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="raised SystemExit"):
        load_task(str(task_file(tmp_path, "raise SystemExit(0)\n")))


def test_a_constructor_that_raises_names_error_and_line(tmp_path: Path) -> None:
    text = f"{HEAD}class Mine(Task):\n    def __init__(self): {{}}['weights']\n{BODY}"
    with pytest.raises(InputError, match=r"Mine\(\) raised KeyError: 'weights' \(line 4\)"):
        load_task(str(task_file(tmp_path, text)))


def test_a_class_that_lacks_a_method_names_it(tmp_path: Path) -> None:
    path = task_file(tmp_path, f"{HEAD}class Mine(Task):\n    pass\n")
    with pytest.raises(
        InputError, match=r"lacks calibration\(\), evaluate\(\), example_inputs\(\), model\(\)"
    ):
        load_task(str(path))


def test_two_task_classes_need_a_name(tmp_path: Path) -> None:
    path = task_file(tmp_path, f"{HEAD}class One(Task):{BODY}class Two(Task):{BODY}")
    with pytest.raises(InputError, match="found One, Two. Name one"):
        load_task(str(path))
    assert load_task(f"{path}:Two").name == "Two"
    with pytest.raises(InputError, match="no class 'Three'. Task classes in it: One, Two"):
        load_task(f"{path}:Three")


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.ones(4, 3)], "calibration batch 1: got Tensor, wanted a tuple of 1 tensors"),
        ([(torch.ones(4, 3),) * 2], "calibration batch 1: got 2 inputs"),
        ([(np.ones(3),)], "sound: got ndarray, wanted a tensor"),
        (
            [(torch.ones(4, 3),), (torch.ones(4, 5),)],
            r"calibration batch 2, sound: got shape \[4, 5\], wanted \[examples, 3\]",
        ),
        ([(torch.ones(4, 3).long(),)], "sound: got torch.int64, wanted torch.float32"),
        (
            [(torch.tensor([[1.0] * 3, [1, float("nan"), 1]]),)],
            "sound: NaN or infinity in example 1",
        ),
        ([], "calibration.. gives no batch"),
    ],
)
def test_calibration_that_does_not_fit_is_named(batches: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_task(Linear(*batches))


def test_a_single_example_is_too_few_to_capture_with() -> None:
    with pytest.raises(InputError, match=r"example_inputs\(\): got a batch of 1"):
        check_task(Linear((torch.ones(4, 3),), examples=(torch.ones(1, 3),)))


def test_inputs_of_one_batch_have_as_many_examples_each() -> None:
    task = Linear((torch.ones(4, 3), torch.ones(3, 3)), examples=(torch.ones(2, 3),) * 2)
    task.input_names = ("sound", "mask")
    with pytest.raises(InputError, match=r"differ in their number of examples \(4, 3\)"):
        check_task(task)


class Labelled(Linear):
    """A task that gives labels."""

    def __init__(self, *labels: torch.Tensor) -> None:
        super().__init__((torch.ones(4, 3),), (torch.ones(2, 3),))
        self.labels = labels

    def calibration_labels(self) -> tuple[torch.Tensor, ...]:
        return self.labels


def test_labels_come_with_the_calibration_batches_if_at_all() -> None:
    labels = (torch.arange(4), torch.arange(2))
    task = Labelled(*labels)
    found = check_labels(task, task.calibration())
    assert found is not None and all(map(torch.equal, found, labels))
    assert check_labels(Linear((torch.ones(4, 3),)), [(torch.ones(4, 3),)]) is None


def test_labels_of_other_batches_are_refused() -> None:
    task = Labelled(torch.arange(4))
    with pytest.raises(InputError, match="1 batches of 4 labels, wanted 2 of 6"):
        check_labels(task, task.calibration())


def test_recorded_answers_compare_two_models_on_the_same_pass() -> None:
    x = torch.randn(6, 4)
    dense, negated = Recorded(lambda inputs: inputs[0]), Recorded(lambda inputs: -inputs[0])
    for model in (dense, negated):
        predict_all(model, (x,), size=4)
    assert torch.equal(dense.answers, x)
    assert torch.allclose(cosines(negated.answers, dense.answers), -torch.ones(6))


def test_the_documented_example_is_short_learns_and_can_be_captured() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40
    task = load_task(str(EXAMPLE))
    check_task(task)
    model = task.model()
    assert np.mean(task.evaluate(lambda inputs: model(*inputs))) > 0.9
    assert capture(model, task.example_inputs()).parameters > 60_000
