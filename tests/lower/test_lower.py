"""``lower`` turns a program into a file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lower_blocks import WIDTH, encoder, encoder_inputs
from torch.export import Dim
from torch.fx import GraphModule

from edgeprune import files
from edgeprune.devices import connect
from edgeprune.errors import InputError
from edgeprune.lower import Lowering, lower
from edgeprune.program import Program


@pytest.fixture(scope="module")
def program() -> Program:
    inputs = encoder_inputs(rows=2)
    batch = {0: Dim("batch", min=1, max=1024)}
    module = torch.export.export(encoder(), inputs, dynamic_shapes=(batch, batch)).module()
    assert isinstance(module, GraphModule)
    return Program(
        module=module,
        example_inputs=inputs,
        input_names=("ids", "mask"),
        output_names=("embedding",),
        meta={"licence": "Apache-2.0"},
    )


@pytest.mark.parametrize(
    "precision",
    [*(pytest.param(each, marks=pytest.mark.nightly) for each in ("fp32", "fp16")), "int8"],
)
def test_an_artifact_describes_the_file_it_comes_with(
    program: Program, precision: str, tmp_path: Path
) -> None:
    artifact = lower(program, tmp_path / "model.pte", Lowering(precision))  # type: ignore[arg-type]
    assert artifact.sha256 == files.sha256_of(artifact.path)
    assert artifact.size_bytes == artifact.path.stat().st_size
    assert [(spec.name, spec.dtype) for spec in artifact.inputs] == [
        ("ids", "int64"),
        ("mask", "int64"),
    ]
    assert [(spec.name, spec.shape) for spec in artifact.outputs] == [("embedding", (1, WIDTH))]
    assert artifact.delegated_nodes > len(artifact.delegation) / 2
    assert artifact.planned_memory_bytes > 0
    assert artifact.lowering.precision == precision


def test_a_lowered_program_scores_as_the_program_does(program: Program, tmp_path: Path) -> None:
    artifact = lower(program, tmp_path / "model.pte", Lowering())
    batch = encoder_inputs(rows=9, seed=3)
    with connect("local") as device, device.predictor(artifact.path) as predict:
        got = predict(batch)
    torch.testing.assert_close(got, program(*batch), atol=1e-5, rtol=1e-5)


def test_an_unwritable_folder_leaves_nothing(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write here"):
        lower(program, tmp_path / "file" / "model.pte", Lowering())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unknown_runtimes_and_precisions_list_what_exists() -> None:
    with pytest.raises(InputError, match="got runtime 'abacus', wanted one of: .*executorch"):
        Lowering(runtime="abacus")
    with pytest.raises(InputError, match="got precision 'int3', wanted one of: fp32, fp16, int8"):
        Lowering("int3")  # type: ignore[arg-type]
