"""Token selections become our operators, and keep the tokens that the program keeps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import models
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_plans import plans
from torch import Tensor
from torch.fx import GraphModule

from edgeprune.errors import InputError
from edgeprune.lower import Lowering, lower
from edgeprune.lower.graph import aten, is_call
from edgeprune.lower.ops import OURS
from edgeprune.lower.prepare import prepare
from edgeprune.lower.slim import fuser, is_ours
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.program.program import as_tuple
from edgeprune.runtime import load
from edgeprune.surgery import apply
from edgeprune.surgery.selections import find_selections, with_selections
from edgeprune.validate.numerics import MAX_ERROR

SOME = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def slim(name: str, *keep: int) -> Program:
    """A model that keeps so many tokens after its first layers."""
    program, streams = models.program(name), models.sites(name).streams
    tokens = {stream.name: kept for stream, kept in zip(streams, keep, strict=False)}
    return apply(program, Plan(program.fingerprint, {}, tokens))


def fused(program: Program, name: str) -> tuple[GraphModule, tuple[Tensor, ...]]:
    inputs = models.inputs(name, 1)
    return prepare(program.module, inputs, *fuser(Lowering())), inputs


def counted(graph: GraphModule) -> Counter[str]:
    return Counter(str(node.target).split(".")[1] for node in graph.graph.nodes if is_ours(node))


BY_DAY = ("grouped",)


@pytest.mark.parametrize(
    "name",
    [n if n in BY_DAY else pytest.param(n, marks=pytest.mark.nightly) for n in models.WITH_TOKENS],
)
@given(data=st.data())
@SOME
def test_any_selections_give_the_outputs_and_tokens_of_the_program(
    name: str, data: st.DataObject
) -> None:
    plan = data.draw(plans(models.sites(name), tokens=True))
    program = with_selections(apply(models.program(name), plan))
    graph, inputs = fused(program, name)
    output, *matrices = as_tuple(graph(*inputs))
    wanted, *kept = as_tuple(program(*inputs))
    torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(matrices, kept, strict=True))
    assert counted(graph)["token_select"] >= len(find_selections(program))


@pytest.mark.parametrize("name", models.WITH_TOKENS)
def test_nothing_of_the_arithmetic_stays(name: str) -> None:
    graph, _ = fused(slim(name, 7, 3), name)
    ours = counted(graph)
    assert ours["slim_attention_scores"] == 2
    assert not any(
        is_call(node, aten.softmax.int, aten.matmul.default, aten.bmm.default, aten.abs.default)
        for node in graph.graph.nodes
    )


def test_the_output_projection_works_on_kept_tokens_alone() -> None:
    graph, _ = fused(slim("bert", 5), "bert")
    rows = [n.meta["val"].shape[1] for n in graph.graph.nodes if is_call(n, aten.linear.default)]
    assert rows == [12, 12, 12, *([5] * 9)]


def test_which_tokens_are_real_is_chosen_and_not_read_off_the_mask_again() -> None:
    graph, _ = fused(slim("bert", 7, 3), "bert")
    _, second = (n for n in graph.graph.nodes if is_call(n, OURS.slim_attention_scores.default))
    assert is_call(second.args[4], OURS.token_select.default)


def test_attention_that_the_kernel_does_not_take_is_scored_in_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeprune.lower.fuse_attention.MOST_HEAD_DIM", 4)
    program = slim("bert", 7, 3)
    graph, inputs = fused(program, "bert")
    assert counted(graph).keys() == {"token_select", "add_layer_norm"}
    torch.testing.assert_close(graph(*inputs), program(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("runtime", ["executorch", "litert"])
@pytest.mark.parametrize(
    "name", ["bert", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("vit", "llama"))]
)
def test_the_runtimes_keep_the_tokens_that_the_program_keeps(
    runtime: str, name: str, tmp_path: Path
) -> None:
    program = with_selections(slim(name, 7, 3))
    lowering = Lowering(runtime=runtime)
    artifact = lower(program, tmp_path / f"model{lowering.suffix}", lowering)
    ours = Counter(
        row.op.split(".")[1] for row in artifact.delegation if row.delegate == "edgeprune"
    )
    assert ours["slim_attention_scores"] == 2 and ours["token_select"] >= 4
    inputs = models.inputs(name, 1)
    output, *matrices = (torch.as_tensor(each) for each in load(artifact.path)(*inputs))
    wanted, *kept = as_tuple(program(*inputs))
    torch.testing.assert_close(output, wanted, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(matrices, kept, strict=True))


@pytest.mark.nightly
def test_a_runtime_without_our_delegate_keeps_the_same_tokens(tmp_path: Path) -> None:
    program = with_selections(slim("bert", 7, 3))
    artifact = lower(program, tmp_path / "model.tflite", Lowering(runtime="litert"))
    runner = Interpreter(str(artifact.path)).get_signature_runner()
    inputs = models.inputs("bert", 1)
    named = {f"args_{i}": each.to(torch.int32).numpy() for i, each in enumerate(inputs)}
    given = runner(**named)
    for number, wanted in enumerate(as_tuple(program(*inputs))):
        got = torch.from_numpy(given[f"output_{number}"])
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "lowering",
    [
        Lowering("fp16"),
        *(
            pytest.param(Lowering("fp16", "litert", delegate), marks=pytest.mark.nightly)
            for delegate in ("auto", "off")
        ),
    ],
    ids=str,
)
def test_half_floats_keep_the_same_tokens(lowering: Lowering, tmp_path: Path) -> None:
    program = with_selections(slim("vit", 7, 3))
    artifact = lower(program, tmp_path / f"model{lowering.suffix}", lowering)
    inputs = models.inputs("vit", 1)
    output, *matrices = (torch.as_tensor(each) for each in load(artifact.path)(*inputs))
    wanted, *kept = as_tuple(program(*inputs))
    assert all(torch.equal(*pair) for pair in zip(matrices, kept, strict=True))
    assert models.relative_error(output, wanted) <= MAX_ERROR["fp16"]


def test_half_floats_cannot_select_in_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp16: tokens are selected by numbers.* delegate auto"):
        lower(slim("bert", 5), tmp_path / "model.pte", Lowering("fp16", delegate="off"))


def test_an_int8_network_that_selects_twice_stays_one_region(tmp_path: Path) -> None:
    lowering = Lowering("int8", isa=("avx512_vnni",))
    artifact = lower(slim("bert", 7, 3), tmp_path / "model.pte", lowering)
    assert len({row.region for row in artifact.delegation if row.delegate == "edgeprune"}) == 1
