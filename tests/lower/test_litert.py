"""Programs as LiteRT files: same outputs in the same order, same bytes, few operators left over."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from lower_blocks import assert_same_bytes_elsewhere, encoder, encoder_inputs
from torch import Tensor, nn

from edgeprune.devices import connect
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.lower import Lowered, Lowering, lower_graph

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("litert")

FP32, INT8 = (Lowering(precision, "litert", "off") for precision in ("fp32", "int8"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fp32() -> Lowered:
    return lower_graph(encoder(), encoder_inputs(), FP32)


@pytest.fixture(scope="module")
def int8() -> Lowered:
    return lower_graph(encoder(), encoder_inputs(), INT8)


def run(lowered: Lowered, folder: Path, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    path = folder / "model.tflite"
    path.write_bytes(lowered.data)
    with connect("local") as device, device.predictor(path) as predict:
        found = predict(inputs)
    return (found,) if isinstance(found, Tensor) else found


def test_fp32_files_compute_what_the_module_computes(fp32: Lowered, tmp_path: Path) -> None:
    inputs = encoder_inputs(rows=4)
    (got,) = run(fp32, tmp_path, inputs)
    torch.testing.assert_close(got, encoder()(*inputs), atol=1e-5, rtol=1e-5)


def test_int8_files_stay_close_and_only_their_linears_are_int8(
    int8: Lowered, fp32: Lowered, tmp_path: Path
) -> None:
    inputs = encoder_inputs(rows=4)
    (got,), wanted = run(int8, tmp_path, inputs), encoder()(*inputs)
    assert torch.cosine_similarity(got, wanted).min() > 0.99
    assert not torch.equal(got, wanted)
    weights = sum(m.weight.numel() for m in encoder().modules() if isinstance(m, nn.Linear))
    saved = len(fp32.data) - len(int8.data)
    assert 0.8 * 3 * weights < saved <= 3 * weights


def test_outputs_come_in_the_programs_order_and_unused_inputs_stay(tmp_path: Path) -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor, unused: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            total = x + y
            return y * 2, x, total, torch.ones(1, 3), x - y, total, (x - y).to(torch.int64), x > 0

    inputs = (torch.randn(3, 4), torch.randn(3, 2), torch.randn(3, 4))
    lowered = lower_graph(Many(), [each[:1] for each in inputs], FP32)
    got = run(lowered, tmp_path, inputs)
    for row in range(3):
        wanted = Many()(*(each[row : row + 1] for each in inputs))
        for one, want in zip(got, wanted, strict=True):
            torch.testing.assert_close(one[row : row + 1].to(want.dtype), want)


def test_what_torch_has_in_64_bits_the_file_has_in_32(fp32: Lowered) -> None:
    assert [each.dtype for each in fp32.inputs] == [torch.int32, torch.int32]
    class_ = lower_graph(ArgMax(), (torch.randn(1, 4),), FP32)
    assert [each.dtype for each in class_.outputs] == [torch.int32]


class ArgMax(nn.Module):
    """The class number."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


def test_a_program_without_linears_can_be_int8(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    (got,) = run(lower_graph(nn.Tanh(), (x[:1],), INT8), tmp_path, (x,))
    torch.testing.assert_close(got, x.tanh(), atol=1e-5, rtol=1e-5)


@pytest.mark.nightly
def test_another_process_lowers_to_the_same_bytes(fp32: Lowered, int8: Lowered) -> None:
    assert_same_bytes_elsewhere({FP32: fp32, INT8: int8})


def test_xnnpack_runs_all_that_works_on_floats_in_one_region(int8: Lowered) -> None:
    assert {row.region for row in int8.delegation if row.delegate == "xnnpack"} == {"0"}
    left = [row for row in int8.delegation if row.delegate == "cpu"]
    assert {row.op for row in left} == {"tfl.cast", "tfl.reshape", "tfl.embedding_lookup"}
    assert all("works on int32" in row.why_not for row in left)
    assert sum(row.op == "tfl.fully_connected" for row in int8.delegation) == 12
    assert int8.delegated_nodes == len(int8.delegation) - len(left)


def test_the_planned_memory_is_that_of_tensors_outside_xnnpack(fp32: Lowered) -> None:
    ids, mask = encoder_inputs()
    embedded = 4 * ids.numel() * 32
    assert embedded <= fp32.planned_memory_bytes < 4 * embedded


def test_the_file_tells_nothing_of_the_modules_origin(fp32: Lowered) -> None:
    assert b"lower_blocks" not in fp32.data and b"Encoder" not in fp32.data


def test_lowering_prints_nothing_and_leaves_logging_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, level = list(logging.getLogger().handlers), logging.getLogger().level
    lower_graph(nn.Linear(4, 4), (torch.randn(1, 4),), INT8)
    assert capfd.readouterr() == ("", "")
    assert list(logging.getLogger().handlers) == root and logging.getLogger().level == level
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_what_the_converter_refuses_is_said_in_one_line() -> None:
    class Complex(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x, dim=-1).values

    with pytest.raises(EdgepruneError, match="litert cannot lower this program at fp32") as caught:
        lower_graph(Complex(), (torch.randn(1, 8),), FP32)
    assert "\n" not in str(caught.value) and caught.value.detail


def test_without_the_converter_it_is_said_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeprune.lower.lowering.versions", lambda packages: {})
    with pytest.raises(InputError, match="litert-torch, .* not installed.*x86-64 Linux"):
        lower_graph(nn.Linear(4, 4), (torch.randn(1, 4),), FP32)
