"""Joins, slices and look-ups in their rarer forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import Do, found_in, units, worst_cut
from torch import Tensor

from edgeprune.program.graph import ATEN, calls

WIDTH = 8


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([torch.tensor([], dtype=x.dtype), x], 1),
        lambda x: torch.cat([x.new_zeros(x.shape[0], 0, *x.shape[2:]), x, x[:, :0]], 1),
    ],
)
def test_what_has_no_entries_is_not_joined(function: Callable[[Tensor], Tensor]) -> None:
    found = found_in(Do(function), WIDTH, WIDTH)
    assert not list(calls(found.program.module.graph, ATEN.cat))
    assert units(found) == {"channels": ("channels", WIDTH)}
    assert worst_cut(found) <= 1e-9


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.index_select(2, torch.tensor(3)),
        lambda x: x.gather(3, x.argmax(3, keepdim=True)),
        lambda x: x * x[..., 0, 0].sum().type_as(x[:, :, 0]),
        lambda x: torch.prelu(x - 0.5, torch.tensor(0.3, dtype=x.dtype)),
        lambda x: x + x[:, :0].reshape(x.shape[0], 0).sum(),
    ],
)
def test_rarer_forms_leave_channels_free(function: Callable[[Tensor], Tensor]) -> None:
    found = found_in(Do(function), WIDTH, WIDTH)
    assert worst_cut(found) <= 1e-9


def test_an_empty_tensor_in_another_shape_crashes_nothing() -> None:
    found = found_in(Do(lambda x: x + x[..., :0].reshape(x.shape[0], 0).sum()), WIDTH, WIDTH)
    assert worst_cut(found) <= 1e-9


def test_both_halves_of_a_gated_unit_leave_together() -> None:
    found = found_in(Do(lambda x: torch.nn.functional.glu(x, 1)), WIDTH, WIDTH // 2)
    assert units(found) == {"channels": ("channels", WIDTH // 2)}
    assert worst_cut(found) <= 1e-9


def test_a_length_over_channels_is_a_sum_of_squares() -> None:
    found = found_in(Do(lambda x: torch.nn.functional.normalize(x, dim=1)), WIDTH, WIDTH)
    assert units(found) == {"channels": ("channels", WIDTH)}
    assert worst_cut(found) <= 1e-9
