"""Lowered graphs: same outputs, same bytes, few regions, clear refusals."""

from __future__ import annotations

import csv
import gc
import logging
from pathlib import Path

import pytest
import torch
from lower_blocks import (
    TOKENS,
    WIDTH,
    Block,
    assert_same_bytes_elsewhere,
    encoder,
    encoder_inputs,
    lowered_encoder,
)
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.graph_module import _loader

from edgeprune.devices import connect
from edgeprune.errors import EdgepruneError
from edgeprune.lower import Lowered, Lowering, lower_graph, write_delegation
from edgeprune.lower.partition import regions

# Files of the encoder are lowered once.
pytestmark = pytest.mark.xdist_group("encoder")

OFF, OFF_INT8 = Lowering(delegate="off"), Lowering("int8", delegate="off")


@pytest.fixture(scope="module")
def fp32() -> Lowered:
    return lowered_encoder(OFF)


@pytest.fixture(scope="module")
def int8() -> Lowered:
    return lowered_encoder(OFF_INT8)


def outputs(lowered: Lowered, folder: Path) -> Tensor:
    path = folder / "model.pte"
    path.write_bytes(lowered.data)
    with connect("local") as device, device.predictor(path) as predict:
        result = predict(encoder_inputs(rows=4))
    assert isinstance(result, Tensor)
    return result


def test_fp32_files_compute_what_the_module_computes(fp32: Lowered, tmp_path: Path) -> None:
    wanted = encoder()(*encoder_inputs(rows=4))
    torch.testing.assert_close(outputs(fp32, tmp_path), wanted, atol=1e-5, rtol=1e-5)


def test_int8_files_stay_close_and_are_smaller(
    int8: Lowered, fp32: Lowered, tmp_path: Path
) -> None:
    wanted = encoder()(*encoder_inputs(rows=4))
    got = outputs(int8, tmp_path)
    assert torch.cosine_similarity(got, wanted).min() > 0.99
    assert not torch.equal(got, wanted)
    assert len(int8.data) < len(fp32.data)


@pytest.mark.nightly
def test_another_process_lowers_to_the_same_bytes(fp32: Lowered, int8: Lowered) -> None:
    assert_same_bytes_elsewhere({OFF: fp32, OFF_INT8: int8})


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.nightly)])
def test_only_layer_norms_part_the_delegate(precision: str, request: pytest.FixtureRequest) -> None:
    rows = request.getfixturevalue(precision).delegation
    norms = sum(row.op == "aten.native_layer_norm.default" for row in rows)
    assert norms == 5
    # Attention and feed-forward of two layers, and either side of the pooling's sum.
    assert {int(row.region) for row in rows if row.region} == set(range(6))


def test_every_operator_is_listed_with_its_reason(fp32: Lowered, tmp_path: Path) -> None:
    path = write_delegation(tmp_path / "delegation.csv", fp32.delegation)
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == len(fp32.delegation)
    assert sum(row["op"] == "aten.linear.default" for row in rows) == 12
    assert all(row["why_not"] for row in rows if row["delegate"] == "cpu")
    assert all(row["region"] for row in rows if row["delegate"] == "xnnpack")
    norm = next(row for row in rows if row["op"] == "aten.native_layer_norm.default")
    assert norm["why_not"] == "XNNPACK has no rule for aten.native_layer_norm.default"


def test_a_refused_node_carries_xnnpacks_own_words() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    rows = lower_graph(Mean(), (torch.randn(1, 4, 8),), Lowering()).delegation
    assert [row.why_not for row in rows] == [
        "mean.dim only supports averaging 4D tensors, got tensor of rank 3"
    ]


def test_sublayers_with_a_mask_input_lower_alone() -> None:
    inputs = (torch.randn(1, TOKENS, WIDTH), torch.zeros(1, 1, 1, TOKENS))
    lowered = lower_graph(Block(heads=3, ffn=40).eval(), inputs, Lowering("int8"))
    assert lowered.delegated_nodes > 0
    assert lowered.planned_memory_bytes >= 4 * TOKENS * WIDTH


def test_a_module_that_cannot_be_exported_says_why_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(EdgepruneError, match="cannot lower this program at fp32") as caught:
        lower_graph(Branching(), (torch.randn(1, 4),), Lowering())
    assert "\n" not in str(caught.value)
    assert caught.value.detail


def test_lowering_prints_nothing_and_leaves_logging_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, level = list(logging.getLogger().handlers), logging.getLogger("torch").level
    lower_graph(nn.Linear(4, 4), (torch.randn(1, 4),), Lowering())
    assert capfd.readouterr() == ("", "")
    assert list(logging.getLogger().handlers) == root
    assert logging.getLogger("torch").level == level


def test_regions_keep_groups_together_and_never_form_a_cycle() -> None:
    class Diamond(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = x + 1
            return torch.sin(a) * (a * 2) - 3

    graph = torch.export.export(Diamond(), (torch.randn(2),)).module().graph  # type: ignore[union-attr]
    nodes = {node.name: node for node in graph.nodes if node.op == "call_function"}
    delegated = [node for name, node in nodes.items() if name != "sin"]
    found = regions(graph, [[node] for node in delegated])
    names = [[node.name for node in region] for region in found]
    assert names == [["add", "mul"], ["mul_1", "sub"]]
    tied = regions(graph, [[nodes["add"]], [nodes["mul"], nodes["mul_1"]], [nodes["sub"]]])
    assert [[node.name for node in region] for region in tied] == [["add"], ["mul", "mul_1", "sub"]]


@pytest.mark.nightly
def test_nothing_of_a_graph_is_kept_once_it_is_lowered() -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(o, (torch.fx.GraphModule, ExportedProgram)) for o in gc.get_objects())

    lower_graph(encoder(), encoder_inputs(), Lowering("int8"))
    before, sources = kept(), len(_loader.eval_cache)
    lower_graph(encoder(), encoder_inputs(), Lowering("int8"))
    assert kept() == before
    assert len(_loader.eval_cache) == sources
