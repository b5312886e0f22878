"""Capture: any model becomes one canonical graph that computes the same."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from models import BATCH, MODELS, TOKENS, WIDTH, inputs, model, noise, program, relative_error
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.program import Program, capture
from edgeprune.program.graph import ancestors, op_name

ATEN = torch.ops.aten


def operators(found: Program) -> Counter[str]:
    """How often the graph calls what."""
    return Counter(op_name(node) for node in found.module.graph.nodes if "call" in node.op)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_a_captured_model_computes_the_same_at_any_batch(name: str, batch: int) -> None:
    given = inputs(name, batch=batch, seed=batch)
    with torch.no_grad():
        assert relative_error(program(name)(*given), model(name)(*given)) <= 1e-5


def test_bert_s_mask_building_becomes_one_additive_mask() -> None:
    calls = [
        node
        for node in program("bert").module.graph.nodes
        if node.target is ATEN.scaled_dot_product_attention.default
    ]
    assert len(calls) == 2
    (mask,) = {node.args[3] for node in calls}
    assert mask.meta["val"].dtype == torch.float32
    assert tuple(mask.meta["val"].shape) == (BATCH, 1, 1, TOKENS)
    built_from = Counter(op_name(n) for n in ancestors(mask) if n.op == "call_function")
    assert built_from == {
        "aten.ne.Scalar": 1,
        "aten.to.dtype": 1,
        "aten.sub.Tensor": 1,
        "aten.mul.Tensor": 1,
        "aten.unsqueeze.default": 2,
    }
    everything = program("bert").module.graph.nodes
    boolean = [n for n in everything if getattr(n.meta.get("val"), "dtype", None) == torch.bool]
    assert [op_name(node) for node in boolean] == ["aten.ne.Scalar"]


def test_llama_s_causal_mask_becomes_a_fixed_additive_table() -> None:
    masks = {
        node.args[3]
        for node in program("llama").module.graph.nodes
        if node.target is ATEN.scaled_dot_product_attention.default
    }
    (mask,) = masks
    table = program("llama").tensors[str(mask.target)].reshape(TOKENS, TOKENS)
    assert torch.equal(table == 0, torch.ones(TOKENS, TOKENS).tril().bool())
    assert torch.isfinite(table).all()


@pytest.mark.parametrize("name", MODELS)
def test_what_does_nothing_is_gone(name: str) -> None:
    found = operators(program(name))
    for gone in ("dropout", "contiguous", "clone", "_assert", "guard", "wrap_with", "view"):
        assert not [call for call in found if gone in call and "unsafe" not in call]
    assert not [call for call in found if call.split(".")[-2:][0].endswith("_")]


def test_an_example_that_is_all_padding_gives_finite_outputs() -> None:
    ids, mask = inputs("bert")
    assert torch.isfinite(program("bert")(ids, torch.zeros_like(mask))).all()


@pytest.mark.parametrize("name", ["bert", "llama", "convolutional"])
def test_a_captured_model_trains(name: str) -> None:
    found = capture(model(name), inputs(name))
    weights = [t for t in found.tensors.values() if isinstance(t, nn.Parameter)]
    step = torch.optim.SGD(weights, lr=1e-3)
    before = found(*inputs(name)).square().mean()
    before.backward()
    step.step()
    assert found(*inputs(name)).square().mean().item() < before.item()


def test_capture_leaves_the_model_s_weights_alone() -> None:
    given = model("fused")
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    capture(given, inputs("fused"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())


def test_names_and_notes_travel_with_the_program() -> None:
    found = capture(
        model("fused"),
        inputs("fused"),
        input_names=["tokens"],
        output_names=["mean"],
        meta={"licence": "MIT"},
    )
    assert (found.input_names, found.output_names) == (("tokens",), ("mean",))
    assert found.meta == {"licence": "MIT"}
    assert program("bert").input_names == ("input_ids", "attention_mask")


class SeveralOutputs(nn.Module):
    """Returns a structure."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"double": 2 * x, "negative": -x}


def test_a_structured_output_becomes_a_plain_tuple() -> None:
    found = capture(SeveralOutputs(), (noise(2, 3, seed=0),))
    double, negative = found(torch.ones(4, 3))
    assert found.output_names == ("output_0", "output_1")
    assert torch.equal(double, torch.full((4, 3), 2.0)) and torch.equal(negative, -torch.ones(4, 3))


class InPlace(nn.Module):
    """Writes into tensors that it still reads, and into a copy of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y += 1
        z = self.linear(y).relu_()
        z[:, :4] *= 2
        return z + x


def test_in_place_code_is_captured_as_if_it_were_not() -> None:
    given = noise(3, 8, seed=0)
    before = given.clone()
    torch.manual_seed(0)
    plain = InPlace().eval()
    found = capture(plain, (given,))
    other = noise(5, 8, seed=1)
    assert relative_error(found(other), plain(other)) <= 1e-6
    assert torch.equal(given, before)


class Rearranged(nn.Module):
    """Needs a copy in another memory layout before its view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().view(x.shape[0], -1)


def test_a_view_of_a_rearranged_copy_is_captured() -> None:
    found = capture(Rearranged(), (noise(3, 4, 5, seed=0),))
    given = noise(2, 4, 5, seed=1)
    assert torch.equal(found(given), Rearranged()(given))


class OneHead(nn.Module):
    """Attention without a head dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v)


def test_attention_without_heads_is_attention_with_one() -> None:
    torch.manual_seed(0)
    plain = OneHead().eval()
    found = capture(plain, (noise(3, 6, WIDTH, seed=0),))
    given = noise(2, 6, WIDTH, seed=1)
    assert relative_error(found(given), plain(given)) <= 1e-6
    (call,) = (n for n in found.module.graph.nodes if "scaled_dot" in op_name(n))
    assert tuple(call.meta["val"].shape) == (3, 1, 6, WIDTH)


class ReadsBatch(nn.Module):
    """Its output depends on how many examples come together."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.full((4,), x.shape[0])


def test_what_depends_on_the_batch_size_is_not_baked_in() -> None:
    found = capture(ReadsBatch(), (torch.zeros(2, 4),))
    assert torch.equal(found(torch.zeros(5, 4)), torch.full((5, 4), 5.0))


class Branches(nn.Module):
    """Cannot be exported: what it does depends on what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


CALLS: list[int] = []


class Counting(nn.Module):
    """Computes something else on every call."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(1)
        return x + len(CALLS)


def test_a_model_that_torch_cannot_export_is_refused_in_one_line() -> None:
    wanted = r"torch.export cannot capture Branches, at test_capture.py:\d+: "
    with pytest.raises(InputError, match=wanted) as caught:
        capture(Branches(), (torch.ones(2, 3),))
    assert "\n" not in str(caught.value)
    assert caught.value.detail is not None and len(caught.value.detail) > len(str(caught.value))


def test_a_model_that_fails_on_its_examples_is_refused_with_its_own_reason() -> None:
    wanted = r"Fused fails on its own example inputs, at \w+.py:\d+: .*shapes"
    with pytest.raises(InputError, match=wanted):
        capture(model("fused"), (torch.ones(2, 3, 5),))


def test_half_precision_weights_are_refused_with_what_to_call() -> None:
    with pytest.raises(InputError, match=r"weight .*got bfloat16, wanted float32. Call .float"):
        capture(nn.Linear(3, 3).bfloat16(), (torch.ones(2, 3).bfloat16(),))


def test_a_wrong_number_of_names_is_refused_with_the_model_s_own() -> None:
    with pytest.raises(InputError, match="got 2 input names .a, b., wanted 1: .* are input"):
        capture(nn.Linear(3, 3), (torch.ones(2, 3),), input_names=("a", "b"))
    with pytest.raises(InputError, match="got 2 output names"):
        capture(nn.Linear(3, 3), (torch.ones(2, 3),), output_names=("a", "b"))


def test_a_model_that_is_not_the_same_after_capture_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="output 'output' moved by"):
        capture(Counting(), (torch.ones(2, 3),))


@pytest.mark.parametrize(
    ("examples", "got"),
    [
        ((torch.ones(1, 3),), r"got \(1, 3\)"),
        ((torch.tensor(1.0),), r"got \(\)"),
        (("words",), "got str"),
    ],
)
def test_examples_that_are_no_batch_are_refused(examples: tuple[Tensor, ...], got: str) -> None:
    with pytest.raises(InputError, match=f"example input 0: {got}.*at least 2 examples"):
        capture(SeveralOutputs(), examples)


class Copied(nn.Module):
    """Repeats groups, writes into them, and joins the two sizes: a view of what was copied."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x[:, :, None].expand(-1, -1, 2, -1).reshape(x.shape[0], -1, x.shape[-1])
        wide += 1
        return wide


def test_a_view_of_a_copy_stands_once_the_copy_is_dropped() -> None:
    x = torch.randn(2, 3, 4)
    captured = capture(Copied(), (x,))
    assert torch.equal(captured(x), Copied()(x))
