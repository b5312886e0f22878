"""A saved model and an array file, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.program import capture
from edgeprune.task import Batch, check_task
from edgeprune.tasks.model_file import ModelFileTask


class Weighed(nn.Module):
    """Two inputs of different kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)

    def forward(self, ids: Tensor, weight: Tensor) -> Tensor:
        return (self.embedding(ids) * weight.unsqueeze(-1)).sum(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "weighed.pt2"
    batch = {0: torch.export.Dim("batch")}
    inputs = (torch.zeros(2, 5, dtype=torch.long), torch.rand(2, 5))
    torch.export.save(torch.export.export(Weighed(), inputs, dynamic_shapes=(batch, batch)), path)
    return path


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(10, size=(40, 5)),
        "weight": rng.random((40, 5), dtype=np.float32),
    }


def written(folder: Path, contents: dict[str, np.ndarray]) -> Path:
    path = folder / "calibration.npz"
    np.savez(path, **contents)  # type: ignore[arg-type]
    return path


def test_two_files_make_a_task_that_can_be_captured(saved: Path, tmp_path: Path) -> None:
    task = ModelFileTask(saved, written(tmp_path, arrays()))
    check_task(task)
    assert (task.name, task.input_names) == ("weighed", ("ids", "weight"))
    program = capture(task.model(), task.example_inputs(), input_names=task.input_names)
    assert program.parameters == 60


def test_a_saved_program_keeps_its_names_and_its_licence(tmp_path: Path) -> None:
    inputs = (torch.zeros(2, 5, dtype=torch.long), torch.rand(2, 5))
    names = {"input_names": ("words", "shares"), "output_names": ("mean",)}
    program = capture(Weighed(), inputs, **names, meta={"licence": "MIT"})
    renamed = dict(zip(("words", "shares"), arrays().values(), strict=True))
    task = ModelFileTask(program.save(tmp_path / "m.pt2"), written(tmp_path, renamed))
    assert (task.input_names, task.output_names) == (("words", "shares"), ("mean",))
    assert (task.licence, task.preprocessing) == ("MIT", "not stated")


def test_the_score_is_the_cosine_to_the_original(saved: Path, tmp_path: Path) -> None:
    task = ModelFileTask(saved, written(tmp_path, arrays()))
    model = task.model()
    assert np.mean(task.evaluate(lambda inputs: model(*inputs))) == pytest.approx(1)
    assert task.validate(lambda inputs: 2 * model(*inputs)) == pytest.approx(1)
    assert np.mean(task.evaluate(lambda inputs: -model(*inputs))) == 0
    half = np.mean(task.evaluate(lambda inputs: model(inputs[0], torch.ones_like(inputs[1]))))
    assert 0.5 < half < 0.999


def test_no_example_is_in_two_splits(saved: Path, tmp_path: Path) -> None:
    numbered = np.arange(40, dtype=np.float32)[:, None].repeat(5, 1)
    contents = arrays() | {"weight": numbered}
    task = ModelFileTask(saved, written(tmp_path, contents))
    seen: list[Tensor] = [weight[:, 0] for _, weight in task.calibration()]

    def predict(inputs: Batch) -> Tensor:
        seen.append(inputs[1][:, 0])
        return torch.ones(len(inputs[1]), 6)

    task.evaluate(predict)
    task.validate(predict)
    assert torch.cat(seen).sort().values.tolist() == list(range(40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.ones((40, 7), np.int64)}, r"ids: got shape \[40, 7\], wanted \[examples, 5\]"),
        ({"ids": np.ones((39, 5), np.int64)}, r"differ in their number of examples \(39, 40\)"),
        ({"ids": np.ones((40, 5), np.int32)}, "ids: got torch.int32, wanted torch.int64"),
        ({"ids": np.full((40, 5), "text")}, "ids: got an array of <U4, wanted numbers"),
        ({"weight": np.full((40, 5), np.nan, np.float32)}, "weight: NaN or infinity in example 0"),
        ({"more": np.ones(40)}, "got arrays ids, weight, more, wanted ids, weight"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_named(
    saved: Path, tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ModelFileTask(saved, written(tmp_path, arrays() | change))


def test_a_missing_input_is_named(saved: Path, tmp_path: Path) -> None:
    calibration = written(tmp_path, {"ids": arrays()["ids"]})
    with pytest.raises(InputError, match="got arrays ids, wanted ids, weight"):
        ModelFileTask(saved, calibration)


def test_too_few_examples_are_refused(saved: Path, tmp_path: Path) -> None:
    few = {name: array[:9] for name, array in arrays().items()}
    with pytest.raises(InputError, match="got 9 examples, wanted 10 or more"):
        ModelFileTask(saved, written(tmp_path, few))


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_files_that_were_cut_short_are_refused(saved: Path, tmp_path: Path, part: float) -> None:
    calibration = written(tmp_path, arrays())
    model = tmp_path / "short.pt2"
    model.write_bytes(saved.read_bytes()[: int(part * saved.stat().st_size)])
    with pytest.raises(InputError, match=r"short\.pt2: not a readable \.pt2"):
        ModelFileTask(model, calibration)
    calibration.write_bytes(calibration.read_bytes()[: int(part * calibration.stat().st_size)])
    with pytest.raises(InputError, match=r"calibration\.npz: not a whole \.npz"):
        ModelFileTask(saved, calibration)


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.npz: no such calibration file"):
        ModelFileTask(saved, tmp_path / "absent.npz")
    with pytest.raises(InputError, match=r"absent\.pt2: no such file"):
        ModelFileTask(tmp_path / "absent.pt2", written(tmp_path, arrays()))


def test_a_model_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fixed.pt2"
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(2, 3),)), path)
    with pytest.raises(InputError, match="input 'input' fixes the batch at 2"):
        ModelFileTask(path, written(tmp_path, {"input": np.ones((20, 3), np.float32)}))
