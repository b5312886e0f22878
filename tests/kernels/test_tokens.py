"""Tokens are scored and selected as the operators' reference says."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeprune.kernels.family import library
from edgeprune.lower.ops import OURS

SCORES = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-45]),
)


class Select(ctypes.Structure):
    """``EpTokenSelect`` of tokens.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("outer", "tokens", "inner", "keep", "type")),
        *((name, ctypes.c_void_p) for name in ("x", "scores", "pinned", "out")),
    )


def refuses(*sizes: int) -> str | None:
    function = library().ep_token_select_refuses
    function.restype = ctypes.c_char_p
    said: Any = function(ctypes.byref(Select(*sizes)))
    return said.decode() if said else None


def selected(x: Tensor, scores: Tensor, pinned: Tensor | None, keep: int) -> Tensor:
    """``x`` is [outer, tokens, inner]."""
    outer, tokens, inner = x.shape
    out = torch.full((outer + 1, keep, inner), 17.0, dtype=x.dtype)
    half = int(x.dtype == torch.float16)
    places = [None if each is None else each.data_ptr() for each in (x, scores, pinned, out)]
    library().ep_token_select(ctypes.byref(Select(outer, tokens, inner, keep, half, *places)))
    assert (out[outer:] == 17).all()
    return out[:outer]


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_the_highest_scores_stay_in_order_and_the_first_of_equals(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 40))
    keep = data.draw(st.integers(1, tokens))
    # Few values, so that many are equal.
    values = data.draw(st.lists(SCORES, min_size=1, max_size=5))
    scores = torch.tensor([data.draw(st.sampled_from(values)) for _ in range(tokens)])
    pinned = (torch.arange(tokens) % 5 == 0) * 1e6 if data.draw(st.booleans()) else None
    x = torch.randn(data.draw(st.integers(1, 3)), tokens, data.draw(st.integers(1, 9)))
    x = x.to(data.draw(st.sampled_from((torch.float32, torch.float16))))
    row = None if pinned is None else pinned[None]
    wanted = OURS.token_select(x, scores[None], row, keep, -2)
    assert torch.equal(selected(x, scores, pinned, keep), wanted)


def test_scores_that_are_no_numbers_still_give_as_many_tokens_as_asked_for() -> None:
    x = torch.randn(1, 6, 2)
    for scores in ([math.nan] * 6, [1.0, math.nan, -math.nan, 0.0, math.inf, math.nan]):
        got = selected(x, torch.tensor(scores), None, 4)[0]
        assert len(torch.unique(got, dim=0)) == 4
        assert all(any(torch.equal(row, each) for each in x[0]) for row in got)


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ((1, 4, 1, 0), "keep outside"),
        ((1, 4, 1, 5), "keep outside"),
        ((-1, 4, 1, 1), "a negative size"),
        ((1, 2**20 + 1, 1, 1), "more than 2^20 tokens"),
        ((2**15, 2**15, 2, 1), "more than 2^30 numbers"),
        ((2**30, 2, 2**30, 1), "more than 2^30 numbers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, ...], problem: str) -> None:
    assert problem in (refuses(*sizes) or "taken")


def test_good_sizes_are_taken() -> None:
    assert refuses(1, 4, 3, 2) is None
