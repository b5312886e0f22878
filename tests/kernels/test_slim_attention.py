"""Slim attention computes what attention is, in every size, and treats odd numbers as PyTorch."""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Any

import pytest
import torch
from drawn_sizes import FEW, running
from hypothesis import given
from hypothesis import strategies as st
from native_programs import reference
from torch import Tensor
from torch.nn import functional

from edgeprune.errors import InputError
from edgeprune.kernels import SlimAttention, host_target, kernel_named
from edgeprune.kernels.attention import _FAMILY
from edgeprune.kernels.targets import TARGETS

# Of the largest output; the inputs are standard normal.
TOLERANCE = 2e-6
KERNELS = running(TARGETS[host_target()].kernels, kernel_named)


def true_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    kv_heads: int,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and weights, by the definition, in float64; rows that may read nothing give 0."""

    def split(x: Tensor, count: int) -> Tensor:
        each = x.double().unflatten(2, (count, -1)).transpose(1, 2)
        return each.repeat_interleave(heads // count, 1)

    scores = split(q, heads) @ split(k, kv_heads).mT * (q.shape[2] // heads) ** -0.5
    if mask is not None:
        scores = scores + mask.double()
    if causal:
        late = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(late, -math.inf)
    if lengths is not None:
        padding = torch.arange(k.shape[1]) >= lengths[:, None]
        scores = scores.masked_fill(padding[:, None, None], -math.inf)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.softmax(-1).masked_fill(nothing, 0.0)
    return (weights @ split(v, kv_heads)).transpose(1, 2).flatten(2), weights


def drawn(batch: int, queries: int, keys: int, heads: int, groups: int, dim: int) -> Any:
    """q, k, v."""
    return (
        torch.randn(batch, queries, heads * dim),
        torch.randn(batch, keys, groups * dim),
        torch.randn(batch, keys, groups * dim),
    )


def relative_error(got: Tensor, wanted: Tensor) -> float:
    # Values are about 1; a lone output in which they cancel has lost those digits in any float.
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(0.1))


@pytest.mark.parametrize("kernel", KERNELS)
@given(data=st.data())
@FEW
def test_any_sizes_and_options_give_attention(kernel: str, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    batch, groups, repeat = (draw(st.integers(1, 3)) for _ in range(3))
    heads = groups * repeat
    queries, keys = draw(st.integers(1, 70)), draw(st.integers(1, 140))
    dim = draw(st.sampled_from((1, 8, 16, 17, 24, 32, 40, 64, 80, 96, 128)))
    q, k, v = drawn(batch, queries, keys, heads, groups, dim)
    options: dict[str, Any] = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        shape = [draw(st.sampled_from((1, size))) for size in (batch, heads, queries)]
        mask = torch.where(torch.rand(*shape, keys) < 0.3, -1e9, torch.randn(*shape, keys))
        mask[..., 0] = 0.0  # a row of -1e9 alone has no digits left for the scores
        options["mask"] = mask
    if draw(st.booleans()):
        options["lengths"] = torch.randint(0, keys + 1, (batch,))
    call = SlimAttention(q, k, v, heads, groups, received=True, kernel=kernel, **options)
    wanted, weights = true_attention(q, k, v, heads, groups, **options)
    assert relative_error(call(), wanted) <= TOLERANCE
    assert relative_error(call.received, weights.sum((1, 2))) <= TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 15, 16, 17, 21, 24, 31, 33, 127, 129, 512, 1000])
@pytest.mark.parametrize("dim", [32, 36])
def test_token_counts_at_the_edges_of_vectors_and_tiles(kernel: str, tokens: int, dim: int) -> None:
    q, k, v = drawn(1, tokens, tokens, 3, 3, dim)
    call = SlimAttention(q, k, v, 3, kernel=kernel)
    assert relative_error(call(), true_attention(q, k, v, 3, 3)[0]) <= TOLERANCE
    first = call().clone()
    assert torch.equal(call(), first), "nothing is kept from call to call"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [20, 60])
def test_parts_of_one_tensor_are_read_where_they_are(kernel: str, tokens: int) -> None:
    fused = torch.randn(2, tokens, 3 * 384)
    q, k, v = fused.chunk(3, dim=-1)
    call = SlimAttention(q, k, v, 12, kernel=kernel)
    assert relative_error(call(), true_attention(q, k, v, 12, 12)[0]) <= TOLERANCE
    fused.normal_()
    assert relative_error(call(), true_attention(q, k, v, 12, 12)[0]) <= TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dim", [7, 32, 80, 128])
@pytest.mark.parametrize("tokens", [1, 17, 130])
def test_half_floats_are_computed_with_as_floats(kernel: str, dim: int, tokens: int) -> None:
    drawn_ = [each.half() for each in drawn(2, tokens, tokens, 4, 2, dim)]
    q, k, v = (_before_a_guard(each) for each in drawn_)
    options: dict[str, Any] = {"mask": torch.randn(1, 4, 1, tokens), "causal": tokens == 17}
    got = SlimAttention(q, k, v, 4, 2, kernel=kernel, **options)()
    assert got.dtype == torch.float16
    floats = [each.float() for each in drawn_]
    assert torch.equal(got, SlimAttention(*floats, 4, 2, kernel=kernel, **options)().half())
    wanted, _ = true_attention(*floats, 4, 2, **options)
    assert relative_error(got, wanted) <= 2**-11 + TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_parts_of_one_tensor_are_read_where_they_are(kernel: str) -> None:
    q, k, v = torch.randn(2, 20, 3 * 384).half().chunk(3, dim=-1)
    got = SlimAttention(q, k, v, 12, kernel=kernel)()
    wanted, _ = true_attention(q.float(), k.float(), v.float(), 12, 12)
    assert relative_error(got, wanted) <= 2**-11 + TOLERANCE


def _before_a_guard(x: Tensor) -> Tensor:
    """A copy that ends where memory does that nobody may read."""
    size, page = x.nbytes, mmap.PAGESIZE
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    held = torch.frombuffer(memory, dtype=x.dtype, offset=whole - size, count=x.numel())
    guard = ctypes.c_void_p(held.data_ptr() + size)
    nobody = 0
    assert ctypes.CDLL(None).mprotect(guard, ctypes.c_size_t(page), nobody) == 0
    return held.reshape(x.shape).copy_(x)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dim", [7, 24, 32])
@pytest.mark.parametrize("tokens", [17, 31])
def test_nothing_is_read_beyond_the_tensors(kernel: str, dim: int, tokens: int) -> None:
    q, k, v = (_before_a_guard(each) for each in drawn(1, tokens, tokens, 2, 2, dim))
    mask = _before_a_guard(torch.randn(1, 2, tokens, tokens))
    call = SlimAttention(q, k, v, 2, mask=mask, kernel=kernel)
    assert call._call.mask_query == tokens
    assert relative_error(call(), true_attention(q, k, v, 2, 2, mask=mask)[0]) <= TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("place", "number"),
    [("q", math.nan), ("k", math.nan), ("v", math.nan), ("v", math.inf), ("q", math.inf)],
)
def test_nan_and_infinity_spread_as_in_pytorch(kernel: str, place: str, number: float) -> None:
    torch.manual_seed(0)
    q, k, v = drawn(1, 9, 20, 2, 2, 16)
    {"q": q, "k": k, "v": v}[place][0, 3, 5] = number
    heads = (each.unflatten(2, (2, 16)).transpose(1, 2) for each in (q, k, v))
    wanted = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    got = SlimAttention(q, k, v, 2, kernel=kernel)()
    assert torch.equal(got.isnan(), wanted.isnan())
    torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_may_read_nothing_are_zero_as_in_pytorch(kernel: str) -> None:
    q, k, v = drawn(1, 4, 20, 2, 2, 16)
    mask = torch.zeros(1, 1, 4, 20)
    mask[:, :, 2] = -math.inf
    mask[:, :, 3, 1:] = -math.inf
    heads = (each.unflatten(2, (2, 16)).transpose(1, 2) for each in (q, k, v))
    wanted = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
    got = SlimAttention(q, k, v, 2, mask=mask, kernel=kernel)()
    torch.testing.assert_close(got, wanted.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-6)
    assert not got[0, 2].any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e4, 1e15])
def test_tiny_and_huge_scores_neither_overflow_nor_vanish(kernel: str, size: float) -> None:
    torch.manual_seed(1)
    q, k, v = drawn(1, 8, 33, 2, 2, 32)
    got = SlimAttention(q * size, k, v, 2, kernel=kernel)()
    assert got.isfinite().all()
    wanted, weights = true_attention(q * size, k, v, 2, 2)
    # Scores of thousands have lost their last digits before any weight is made of them.
    decided = (
        (weights.amax(-1) > 1 - 1e-6).all(1)[0] if size > 1 else torch.ones(8, dtype=torch.bool)
    )
    assert decided.any()
    assert relative_error(got[0, decided], wanted[0, decided]) <= 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_queries_of_weight_zero_give_no_attention(kernel: str) -> None:
    q, k, v = drawn(2, 12, 12, 4, 2, 8)
    real = (torch.arange(12) < torch.tensor([[12], [5]])).float()
    call = SlimAttention(q, k, v, 4, 2, received=True, query_weights=real, kernel=kernel)
    call()
    _, weights = true_attention(q, k, v, 4, 2)
    wanted = (weights * real[:, None, :, None]).sum((1, 2))
    assert relative_error(call.received, wanted) <= TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_threads_than_heads_share_the_query_rows_in_any_order(kernel: str) -> None:
    q, k, v = drawn(1, 50, 33, 2, 2, 32)
    call = SlimAttention(q, k, v, 2, kernel=kernel)
    wanted = call().clone()
    call._call.threads = 6
    steps = call.kernel.steps(ctypes.byref(call._call))
    assert steps == 6
    call.out.zero_()
    for step in reversed(range(steps)):
        call.kernel.run(ctypes.byref(call._call), step, step + 1, call._workspace)
    assert torch.equal(call.out, wanted)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("queries", [1, 16])
def test_more_threads_than_heads_share_the_keys_of_few_queries(kernel: str, queries: int) -> None:
    q, k, v = drawn(2, queries, 1500, 2, 1, 40)
    options: dict[str, Any] = {
        "mask": torch.randn(1, 2, 1, 1500),
        "lengths": torch.tensor([9, 1400]),
    }
    call = SlimAttention(q, k, v, 2, 1, kernel=kernel, **options)
    call._call.threads = 8
    at = ctypes.byref(call._call)
    assert call.kernel.steps(at) < 8, "nothing is split without memory for it"
    memory = torch.full((call.kernel.parts_bytes(at) // 4,), math.nan)
    call._call.parts = ctypes.cast(memory.data_ptr(), ctypes.POINTER(ctypes.c_float))
    assert call.kernel.steps(at) == 8
    for step in reversed(range(8)):
        call.kernel.run(at, step, step + 1, call._workspace)
    call.kernel.merge(at)
    wanted, _ = true_attention(q, k, v, 2, 1, **options)
    assert relative_error(call.out, wanted) <= TOLERANCE


def test_the_reference_says_what_the_kernels_compute() -> None:
    q = torch.randn(2, 9, 4 * 24)
    k, v = torch.randn(2, 21, 2 * 2 * 24).chunk(2, dim=-1)
    options = {"causal": True, "lengths": torch.tensor([21, 0]), "mask": torch.randn(1, 4, 1, 21)}
    call = SlimAttention(q, k, v, 4, 2, **options)  # type: ignore[arg-type]
    fast = call().clone()
    reference().ep_attention_reference(ctypes.byref(call._call))
    wanted, _ = true_attention(q, k, v, 4, 2, **options)  # type: ignore[arg-type]
    assert relative_error(call.out, wanted) <= 1e-7
    assert relative_error(fast, call.out) <= TOLERANCE


def test_sizes_that_do_not_fit_are_refused() -> None:
    q, k, v = drawn(1, 4, 4, 4, 4, 8)
    for options, problem in (
        ({"heads": 5}, "wanted one head_dim"),
        ({"heads": 4, "kv_heads": 3}, "wanted one head_dim"),
        ({"heads": 4, "kernel": "mmx"}, "this machine runs no kernel 'mmx'"),
    ):
        with pytest.raises(InputError, match=problem):
            SlimAttention(q, k, v, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a head_dim outside 1 to 128"):
        SlimAttention(*drawn(1, 4, 4, 1, 1, 129), 1)
    with pytest.raises(InputError, match="no multiple of the key-value heads"):
        SlimAttention(*drawn(1, 4, 4, 3, 2, 8), 3, 2)
    call = SlimAttention(q, k, v, 4)
    call._call.k_row = 31
    with pytest.raises(InputError, match="rows that overlap"):
        _FAMILY.check(call._call)
    for other in (q.double(), q.half()):
        with pytest.raises(InputError, match="wanted float32 or float16 in all three"):
            SlimAttention(other, k, v, 4)
