"""Layer normalisation of a residual sum, as PyTorch has it, in every size."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from drawn_sizes import FEW, running
from hypothesis import given
from hypothesis import strategies as st
from native_programs import reference
from torch import Tensor
from torch.nn import functional

from edgeprune.errors import InputError
from edgeprune.kernels import host_target, layer_norm, norm_kernel_named
from edgeprune.kernels.norm import _Call
from edgeprune.kernels.targets import TARGETS

# Of the largest output.
TOLERANCE = 2e-6
KERNELS = running(TARGETS[host_target()].kernels, norm_kernel_named)


def true_norm(s: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """In float64."""
    return functional.layer_norm(s.double(), s.shape[-1:], weight.double(), bias.double(), eps)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3))


@pytest.mark.parametrize("kernel", KERNELS)
@given(data=st.data())
@FEW
def test_any_size_gives_the_norm_of_the_sum(kernel: str, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    rows, width = draw(st.integers(1, 20)), draw(st.integers(1, 400))
    eps = draw(st.sampled_from((1e-12, 1e-5, 0.1)))
    x, weight, bias = torch.randn(rows, width), torch.randn(width), torch.randn(width)
    residual = torch.randn(rows, width) if draw(st.booleans()) else None
    s = x if residual is None else x + residual
    out, total = layer_norm(x, weight, bias, residual, eps=eps, kernel=kernel)
    assert torch.equal(total, s)
    assert relative_error(out, true_norm(s, weight, bias, eps)) <= TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mean", [1e2, -1e4, 1e6])
@pytest.mark.parametrize("width", [384, 1000, 4096])
def test_a_large_mean_costs_no_digits(kernel: str, mean: float, width: int) -> None:
    torch.manual_seed(0)
    s, weight, bias = torch.randn(5, width) + mean, torch.randn(width), torch.randn(width)
    out, _ = layer_norm(s, weight, bias, kernel=kernel)
    assert relative_error(out, true_norm(s, weight, bias)) <= TOLERANCE


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_spread_as_in_pytorch(kernel: str, number: float) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(9, 70), torch.randn(70), torch.randn(70)
    for row, place in ((1, 0), (4, 69), (7, 33)):
        x[row, place] = number
    out, _ = layer_norm(x, weight, bias, kernel=kernel)
    wanted = functional.layer_norm(x, (70,), weight, bias)
    assert torch.equal(out.isnan(), wanted.isnan())
    torch.testing.assert_close(out, wanted, equal_nan=True)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [3, 33, 384])
def test_half_floats_are_computed_with_as_floats(kernel: str, width: int) -> None:
    x, residual = torch.randn(2, 9, width).half()
    weight, bias = torch.randn(2, width)
    out, total = layer_norm(x, weight, bias, residual, kernel=kernel)
    sums = x.float() + residual.float()
    assert torch.equal(total, sums.half())
    floats, _ = layer_norm(sums, weight, bias, kernel=kernel)
    assert torch.equal(out, floats.half())


@pytest.mark.parametrize("kernel", KERNELS)
def test_constant_rows_give_the_bias(kernel: str) -> None:
    x, weight, bias = torch.full((4, 33), 7.25), torch.randn(33), torch.randn(33)
    x[1] = 0.0
    assert torch.equal(layer_norm(x, weight, bias, kernel=kernel)[0], bias.expand(4, 33))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [5, 64, 100])
def test_rows_may_come_in_any_order_in_place_and_nothing_else_is_written(
    kernel: str, width: int
) -> None:
    torch.manual_seed(0)
    x, residual, weight, bias = torch.randn(4, 11, width).unbind()
    wanted, total = layer_norm(x, weight[0], bias[0], residual, kernel=kernel)
    for inside in (False, True):
        buffer = torch.full((13, width), 17.0)
        out = buffer[1:12]
        out.copy_(residual)
        sums = torch.full((13, width), 17.0)
        places = (x, out, weight[0], bias[0], None if inside else sums[1:12], out)
        call = _Call(
            11, width, 0, 1e-5, *(each.data_ptr() if each is not None else None for each in places)
        )  # noqa: E501
        for row in reversed(range(11)):
            norm_kernel_named(kernel).run(ctypes.byref(call), row, row + 1)
        assert torch.equal(out, wanted)
        assert inside or torch.equal(sums[1:12], total)
        for each in (buffer, sums):
            assert (each[0] == 17).all() and (each[12] == 17).all()


def test_the_reference_says_what_the_kernels_compute() -> None:
    x, residual, weight, bias = torch.randn(4, 6, 50).unbind()
    fast, total = layer_norm(x, weight[0], bias[0], residual)
    slow, sums = torch.empty(6, 50), torch.empty(6, 50)
    places = (x, residual, weight, bias, sums, slow)
    call = _Call(6, 50, 0, 1e-5, *(each.data_ptr() for each in places))
    reference().ep_norm_reference(ctypes.byref(call))
    assert relative_error(slow, true_norm(x + residual, weight[0], bias[0])) <= 1e-6
    assert relative_error(fast, slow) <= TOLERANCE
    assert torch.equal(sums, total)


def test_sizes_and_types_that_do_not_fit_are_refused() -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(8), torch.randn(8)
    for options, problem in (
        ({"weight": weight[:7]}, r"got weight \[7\] of torch.float32, wanted \[8\]"),
        ({"residual": x[:2]}, r"got residual \[2, 8\]"),
        ({"x": x.double()}, r"got x \[3, 8\] of torch.float64"),
        ({"kernel": "mmx"}, "this machine runs no kernel 'mmx'"),
    ):
        with pytest.raises(InputError, match=problem):
            layer_norm(**{"x": x, "weight": weight, "bias": bias, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no width"):
        layer_norm(x[:, :0], weight[:0], bias[:0])
