"""Merging tokens: what goes is averaged into what is most like it, and weighs on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_reference import MergeReference
from models import inputs, program, relative_error, sites

from edgeprune.errors import InputError
from edgeprune.lower import lower
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan, check_plan
from edgeprune.program import Program
from edgeprune.runtime import load
from edgeprune.surgery import apply
from edgeprune.surgery.selections import find_selections

FEW = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MERGING = ("bert", "bert_first", "vit", "fused", "grouped", "torch_encoder")
DOUBLE, SINGLE = torch.float64, torch.float32
TOLERANCE = {DOUBLE: 1e-9, SINGLE: 1e-5}


def merging(name: str, *tokens: int, drops: int | None = None, dtype: torch.dtype = SINGLE) -> Plan:
    """Tokens to keep after each layer; all layers merge but layer ``drops``."""
    found = sites(name, dtype)
    names = [stream.name for stream in found.streams][: len(tokens)]
    merge = frozenset(each for i, each in enumerate(names) if i != drops)
    return Plan(found.program.fingerprint, {}, dict(zip(names, tokens, strict=True)), merge=merge)


def agrees(name: str, plan: Plan, dtype: torch.dtype, seed: int) -> bool:
    """Compare with the reference; False where a near tie may fall either way."""
    found = sites(name, dtype)
    batch = inputs(name, batch=4, seed=seed, dtype=dtype)
    reference = MergeReference(found, plan, batch[1] if len(batch) > 1 else None)
    wanted = reference.run(*batch)
    if min(reference.margin, reference.gap) <= TOLERANCE[dtype]:
        return False
    assert relative_error(apply(found.program, plan, found)(*batch), wanted) <= TOLERANCE[dtype]
    return True


@pytest.mark.parametrize("name", MERGING)
@pytest.mark.parametrize("drops", [None, 0, 1])
def test_merging_equals_tokens_made_equal(name: str, drops: int | None) -> None:
    assert agrees(name, merging(name, 7, 4, drops=drops, dtype=DOUBLE), DOUBLE, seed=3)
    agrees(name, merging(name, 7, 4, drops=drops), SINGLE, seed=3)


@given(
    name=st.sampled_from(MERGING),
    first=st.integers(3, 12),
    left=st.integers(2, 12),
    drops=st.sampled_from([None, 0, 1]),
    seed=st.integers(0, 99),
)
@FEW
def test_merging_any_number_of_tokens(
    name: str, first: int, left: int, drops: int | None, seed: int
) -> None:
    agrees(name, merging(name, first, min(left, first), drops=drops, dtype=DOUBLE), DOUBLE, seed)


def test_merging_equal_tokens_loses_nothing() -> None:
    found = sites("fused", DOUBLE)
    kinds = torch.randn(3, 2, 8, dtype=DOUBLE)
    batch = kinds[:, [0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0]]
    whole = found.program(batch)
    for keep in (7, 9):
        merged = apply(found.program, merging("fused", keep, 7, dtype=DOUBLE), found)
        assert relative_error(merged(batch), whole) <= 1e-9
        plan = merging("fused", keep, 7, dtype=DOUBLE)
        dropped = apply(found.program, Plan(plan.program, {}, plan.tokens), found)
        assert relative_error(dropped(batch), whole) > 1e-3


def test_padding_merges_into_no_real_token() -> None:
    found = sites("bert", DOUBLE)
    slim = apply(found.program, merging("bert", 5, 4, dtype=DOUBLE), found)
    ids, mask = inputs("bert", batch=3)
    mask = torch.ones_like(mask)
    mask[0, 7:] = 0
    mask[1, 4:] = 0
    mask[2] = 0
    other = torch.where(mask.bool(), ids, (ids + 1) % 50)
    assert torch.equal(slim(ids, mask)[:2], slim(other, mask)[:2])
    assert torch.isfinite(slim(ids, mask)).all()


def test_a_class_token_takes_no_other_in() -> None:
    found = sites("vit")
    first = apply(found.program, merging("vit", 2), found)
    with pytest.raises(InputError, match="keeps 1 tokens, all pinned"):
        check_plan(merging("vit", 1), found)
    (matrix,) = (n for n in first.module.graph.nodes if "div" in n.name and len(n.users) == 1)
    assert matrix.meta["val"].shape[1:] == (2, 17)


def test_under_a_causal_mask_tokens_cannot_merge() -> None:
    with pytest.raises(InputError, match="cannot merge tokens: its attention hides some"):
        check_plan(merging("llama", 5), sites("llama"))


def test_merging_without_a_number_of_tokens_is_refused() -> None:
    plan = Plan(program("bert").fingerprint, merge=frozenset({"bert.encoder.layer.0.tokens"}))
    with pytest.raises(InputError, match="keeps no number of tokens there"):
        check_plan(plan, sites("bert"))


def test_a_merging_program_trains_saves_and_reloads(tmp_path: Path) -> None:
    slim = apply(program("bert"), merging("bert", 7, 3))
    batch = inputs("bert", batch=5, seed=4)
    loaded = Program.load(slim.save(tmp_path / "slim.pt2"))
    assert torch.equal(loaded(*batch), slim(*batch))
    assert len(find_selections(loaded)) == 2
    loaded(*batch).square().mean().backward()
    weights = [w for w in loaded.tensors.values() if isinstance(w, torch.nn.Parameter)]
    assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in weights)


@pytest.mark.parametrize("delegate", ["auto", pytest.param("off", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["bert", pytest.param("vit", marks=pytest.mark.nightly)])
def test_a_lowered_merging_program_gives_equal_outputs(
    name: str, delegate: str, tmp_path: Path
) -> None:
    slim = apply(program(name), merging(name, 7, 3))
    artifact = lower(slim, tmp_path / "model.pte", Lowering(delegate=delegate))
    batch = inputs(name, 1)
    (got,) = load(artifact.path)(*batch)
    torch.testing.assert_close(torch.as_tensor(got), slim(*batch), atol=1e-5, rtol=1e-5)


def test_half_floats_cannot_hold_what_merging_compares(tmp_path: Path) -> None:
    slim = apply(program("vit"), merging("vit", 7))
    with pytest.raises(InputError, match="fp16"):
        lower(slim, tmp_path / "model.pte", Lowering("fp16"))
