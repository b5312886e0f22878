"""Dropping tokens: the pooled output is what it would be if the dropped tokens were hidden."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import TOKENS, WITH_TOKENS, inputs, model, padding, program, relative_error, sites
from random_plans import plans
from token_reference import Reference
from torch import Tensor

from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.sites import find_sites
from edgeprune.surgery import apply
from edgeprune.surgery.selections import find_selections, with_selections

FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=80)
DOUBLE, SINGLE = torch.float64, torch.float32
TOLERANCE = {DOUBLE: 1e-9, SINGLE: 1e-5}


def agrees(name: str, plan: Plan, dtype: torch.dtype, seed: int) -> None:
    """Compare the slim program with the reference on a batch that it was not captured with."""
    found = sites(name, dtype)
    given_ = inputs(name, batch=4, seed=seed, dtype=dtype)
    real = given_[1] if len(given_) > 1 else None
    reference = Reference(found, plan, real)
    wanted = reference.run(*given_)
    if reference.margin <= TOLERANCE[dtype]:
        return  # a near tie may fall either way
    got = apply(found.program, plan, found)(*given_)
    assert relative_error(got, wanted) <= TOLERANCE[dtype]


def kept_tokens(slim: Program, given_: tuple[Tensor, ...]) -> Tensor:
    """Original positions that reach the end, [batch, kept], composed from all selections."""
    outputs = with_selections(slim)(*given_)
    *_, last = chain = outputs[len(slim.output_names) :]
    matrix = chain[0]
    for selection in chain[1:]:
        matrix = selection @ matrix
    assert matrix.shape[1] == last.shape[1]
    assert torch.equal(matrix.sum(-1), torch.ones_like(matrix.sum(-1)))
    return matrix.argmax(-1)


@pytest.mark.parametrize("name", WITH_TOKENS)
@given(data=st.data(), seed=st.integers(0, 50))
@FEW
def test_dropped_tokens_are_as_good_as_hidden_in_double_precision(
    name: str, data: st.DataObject, seed: int
) -> None:
    agrees(name, data.draw(plans(sites(name, DOUBLE), tokens=True)), DOUBLE, seed)


@pytest.mark.parametrize("name", ["bert", "llama"])
@given(data=st.data(), seed=st.integers(0, 50))
@FEW
def test_dropped_tokens_are_as_good_as_hidden_in_single_precision(
    name: str, data: st.DataObject, seed: int
) -> None:
    agrees(name, data.draw(plans(sites(name), tokens=True)), SINGLE, seed)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("name", WITH_TOKENS)
@given(data=st.data(), seed=st.integers(0, 10_000))
@MANY
def test_dropped_tokens_are_as_good_as_hidden_over_many_plans(
    name: str, dtype: torch.dtype, data: st.DataObject, seed: int
) -> None:
    agrees(name, data.draw(plans(sites(name, dtype), tokens=True)), dtype, seed)


def selecting(name: str, *keep: int) -> Plan:
    """A plan that only selects tokens, in the first layers."""
    found = sites(name)
    streams = zip(found.streams, keep, strict=False)
    return Plan(found.program.fingerprint, {}, {s.name: count for s, count in streams})


@pytest.mark.parametrize(("name", "keep"), [("bert", (7, 3)), ("vit", (9, 2)), ("llama", (6, 5))])
def test_the_tokens_kept_are_the_reference_s_in_ascending_order(
    name: str, keep: tuple[int, ...]
) -> None:
    given_ = inputs(name, batch=5, seed=3)
    plan = selecting(name, *keep)
    reference = Reference(sites(name), plan, given_[1] if name == "bert" else None)
    reference.run(*given_)
    got = kept_tokens(apply(program(name), plan), given_)
    assert [row.tolist() for row in got] == [
        row.nonzero().flatten().tolist() for row in reference.kept[-1]
    ]


@pytest.mark.parametrize("keep", [(1,), (4, 2), (9, 7), (TOKENS - 1, 1)])
def test_padding_never_survives_before_a_real_token(keep: tuple[int, ...]) -> None:
    given_ = inputs("bert", batch=6, seed=1)
    kept = kept_tokens(apply(program("bert"), selecting("bert", *keep)), given_)
    real = padding(6)
    for row, chosen in zip(real, kept, strict=True):
        assert int(row[chosen].sum()) == min(keep[-1], int(row.sum()))


def test_pinned_tokens_survive_even_where_nothing_attends_to_them() -> None:
    first = kept_tokens(
        apply(program("vit"), selecting("vit", 5, 1)), inputs("vit", batch=5, seed=2)
    )
    assert first[:, 0].eq(0).all()
    # The last token of a causal decoder is attended to by itself alone, so its score is lowest.
    last = kept_tokens(
        apply(program("llama"), selecting("llama", 4, 1)), inputs("llama", batch=5, seed=2)
    )
    assert last[:, -1].eq(TOKENS - 1).all()


def test_a_pinned_token_that_is_padding_survives() -> None:
    ids, mask = inputs("bert_first", batch=3)
    mask = mask.clone()
    mask[:, 0] = 0
    kept = kept_tokens(apply(program("bert_first"), selecting("bert_first", 2)), (ids, mask))
    assert kept[:, 0].eq(0).all()


@pytest.mark.parametrize("name", ["bert_first", "vit", "torch_encoder", "llama"])
def test_one_token_is_enough_for_a_model_read_at_one_token(name: str) -> None:
    agrees(name, selecting(name, 1), SINGLE, seed=0)


def test_equal_scores_go_to_the_earlier_token() -> None:
    even = model("fused")
    with torch.no_grad():
        even.layers[0].qkv.weight.zero_()  # type: ignore[union-attr, index]
        even.layers[0].qkv.bias.zero_()  # type: ignore[union-attr, index]
    captured = capture(even, inputs("fused"))
    stream = find_sites(captured).streams[0].name
    slim = apply(captured, Plan(captured.fingerprint, {}, {stream: 5}))
    assert kept_tokens(slim, inputs("fused")).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_an_example_that_is_all_padding_gives_finite_outputs() -> None:
    ids, mask = inputs("bert", batch=3)
    mask = mask.clone()
    mask[1] = 0
    for tokens in ((), (6, 2)):
        slim = apply(program("bert"), selecting("bert", *tokens))
        assert torch.isfinite(slim(ids, mask)).all()


def test_selecting_shortens_the_work_that_follows() -> None:
    slim = apply(program("bert"), selecting("bert", 5))
    queries = [
        tuple(node.meta["val"].shape)
        for node in slim.module.graph.nodes
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    ]
    assert [each[2] for each in queries] == [5]  # the other one was written out to give scores
    assert len(find_selections(slim)) == 1
    hidden = {
        node.meta["val"].shape[1]
        for node in slim.module.graph.nodes
        if node.target is torch.ops.aten.gelu.default
    }
    assert hidden == {5}


def test_keeping_every_token_selects_nothing() -> None:
    slim = apply(program("bert"), selecting("bert", TOKENS, 4))
    assert [node.meta["val"].shape[1] for node in find_selections(slim)] == [4]


def test_a_program_with_selections_trains_saves_and_reloads(tmp_path: Path) -> None:
    slim = apply(program("bert"), selecting("bert", 7, 3))
    given_ = inputs("bert", batch=5, seed=4)
    loaded = Program.load(slim.save(tmp_path / "slim.pt2"))
    assert torch.equal(loaded(*given_), slim(*given_))
    assert loaded.fingerprint == slim.fingerprint
    loss = loaded(*given_).square().mean()
    loss.backward()
    weights = [w for w in loaded.tensors.values() if isinstance(w, torch.nn.Parameter)]
    assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in weights)
    torch.optim.SGD(weights, lr=1e-3).step()
    assert loaded(*given_).square().mean().item() < loss.item()
    assert replace(loaded).fingerprint != slim.fingerprint
