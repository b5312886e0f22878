"""Linear layers in 8 bits: exact sums on every instruction set, in every size."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from drawn_sizes import FEW, running
from hypothesis import given
from hypothesis import strategies as st
from native_programs import reference
from torch import Tensor
from torch.nn import functional

from edgeprune.errors import InputError
from edgeprune.kernels import QuantisedLinear, host_target, linear_kernel_named
from edgeprune.kernels.linear import ACTIVATIONS
from edgeprune.kernels.targets import TARGETS

TRUE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": functional.gelu,
}
GUARD = 0xA5
KERNELS = running(TARGETS[host_target()].linear, linear_kernel_named)


def drawn(in_: int, out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, scales, bias."""
    weights = torch.randint(-128, 128, (out, in_), dtype=torch.int8)
    return weights, torch.rand(out) * 1e-2 + 1e-3, torch.randn(out)


def whole_numbers(rows: int, in_: int) -> Tensor:
    """Inputs whose scale is 1: every step from -100 to 155 is one of the 256."""
    x = torch.randint(-100, 156, (rows, in_)).float()
    x[:, 0], x[:, -1] = -100.0, 155.0
    return x


@pytest.mark.parametrize("kernel", KERNELS)
@given(data=st.data())
@FEW
def test_the_error_is_that_of_rounding_x_in_any_size(kernel: str, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    rows, in_, out = draw(st.integers(1, 40)), draw(st.integers(1, 130)), draw(st.integers(1, 110))
    weights, scales, bias = drawn(in_, out)
    activation = draw(st.sampled_from(ACTIVATIONS))
    x = torch.randn(rows, in_) + draw(st.sampled_from((0.0, 1.0, -3.0)))
    y = QuantisedLinear(weights, scales, bias, activation=activation, kernel=kernel)(x)
    real = weights.double() * scales[:, None].double()
    wanted = TRUE[activation](x.double() @ real.T + bias.double())
    step = (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)).double() / 255
    # Half a step of every input; the GELU is at most 1.13 times as steep as the identity.
    bound = 1.13 * 0.501 * step[:, None] * real.abs().sum(1)
    assert ((y - wanted).abs() <= bound + 1e-5).all()


@pytest.mark.parametrize("kernel", KERNELS)
@given(data=st.data())
@FEW
def test_sums_of_products_are_exact_whole_numbers(kernel: str, data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    rows, in_, out = draw(st.integers(1, 40)), draw(st.integers(2, 300)), draw(st.integers(1, 110))
    weights, _, _ = drawn(in_, out)
    x = whole_numbers(rows, in_)
    y = QuantisedLinear(weights, torch.ones(out), kernel=kernel)(x)
    assert torch.equal(y, (x.double() @ weights.double().T).float())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("extreme", [-128, -127, 127])
def test_extreme_weights_and_inputs_saturate_nowhere(kernel: str, extreme: int) -> None:
    weights = torch.full((33, 3072), extreme, dtype=torch.int8)
    x = torch.full((9, 3072), 255.0)
    x[1::3] = -255.0
    x[2::3, ::2] = -100.0
    x[2::3, 1::2] = 155.0
    y = QuantisedLinear(weights, torch.ones(33), kernel=kernel)(x)
    assert torch.equal(y, (x.double() @ weights.double().T).float())


def test_every_instruction_set_computes_the_same_sums() -> None:
    torch.manual_seed(0)
    weights, _, _ = drawn(384, 100)
    x = torch.randn(300, 384) * torch.logspace(-3, 3, 300)[:, None]
    found = [QuantisedLinear(weights, torch.ones(100), kernel=kernel)(x) for kernel in KERNELS]
    for kernel, y in zip(KERNELS, found, strict=True):
        assert torch.equal(y, found[0]), kernel


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 8, 9, 16, 17, 127, 128, 129, 300])
@pytest.mark.parametrize(("in_", "out"), [(32, 32), (33, 47), (384, 80), (30, 384)])
def test_sizes_at_the_edges_of_vectors_and_tiles(
    kernel: str, rows: int, in_: int, out: int
) -> None:
    weights, _, _ = drawn(in_, out)
    x = whole_numbers(rows, in_)
    y = QuantisedLinear(weights, torch.ones(out), kernel=kernel)(x)
    assert torch.equal(y, (x.double() @ weights.double().T).float())


@pytest.mark.parametrize("kernel", KERNELS)
def test_gelu_is_the_one_with_erf_to_a_millionth(kernel: str) -> None:
    bias = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([-1e4, -0.0, 1e4, 1e30])])
    weights = torch.zeros(len(bias), 1, dtype=torch.int8)
    layer = QuantisedLinear(weights, torch.ones(len(bias)), bias, activation="gelu", kernel=kernel)
    wanted = functional.gelu(bias.double())
    error = (layer(torch.zeros(1, 1))[0] - wanted).abs()
    assert (error <= 1e-6 + 1e-7 * wanted.abs()).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_row_with_nan_or_infinity_becomes_nan_alone(
    kernel: str, activation: str, number: float
) -> None:
    torch.manual_seed(0)
    layer = QuantisedLinear(*drawn(70, 20), activation=activation, kernel=kernel)
    x = torch.randn(11, 70)
    wanted = layer(x)
    for row, place in ((2, 0), (5, 69), (9, 33)):
        x[row, place] = number
    got = layer(x)
    spoilt = torch.zeros(11, dtype=torch.bool)
    spoilt[[2, 5, 9]] = True
    assert got[spoilt].isnan().all()
    assert torch.equal(got[~spoilt], wanted[~spoilt])


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_zeros_give_the_bias_and_constants_no_error(kernel: str) -> None:
    weights, scales, bias = drawn(50, 40)
    layer = QuantisedLinear(weights, scales, bias, kernel=kernel)
    x = torch.zeros(5, 50)
    x[1], x[2], x[3], x[4] = 3.7, -3.7, 1e-20, 1e-38
    y = layer(x)
    assert torch.equal(y[0], bias)
    sums = (weights.double() * scales[:, None].double()).sum(1)
    wanted = x[:, :1].double() * sums + bias.double()
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
def test_tiny_and_huge_rows_neither_overflow_nor_vanish(kernel: str, size: float) -> None:
    torch.manual_seed(0)
    weights, _, _ = drawn(64, 20)
    x = (torch.rand(6, 64) * 2 - 1) * size
    scales = torch.full((20,), 1e-6)
    y = QuantisedLinear(weights, scales, kernel=kernel)(x).double() / size
    wanted = x.double() / size @ weights.double().T * 1e-6
    assert (y - wanted).abs().max() <= 0.01 * wanted.abs().max()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("rows", "out", "threads"), [(200, 40, 1), (50, 40, 7), (3, 500, 64)])
def test_threads_share_rows_and_panels_in_any_order(
    kernel: str, rows: int, out: int, threads: int
) -> None:
    layer = QuantisedLinear(*drawn(60, out), activation="gelu", kernel=kernel)
    x = torch.randn(rows, 60)
    wanted = layer(x)
    call, y = layer._call, torch.full((rows, out), math.nan)
    quantised = torch.zeros(layer.kernel.quantised_bytes(rows, 60), dtype=torch.uint8)
    for row in reversed(range(rows)):
        layer.kernel.quantise(x.data_ptr(), rows, 60, row, row + 1, quantised.data_ptr())
    call.threads, call.quantised, call.y = threads, quantised.data_ptr(), y.data_ptr()
    steps = layer.kernel.steps(ctypes.byref(call))
    assert steps >= min(threads, rows // 8)
    for step in reversed(range(steps)):
        layer.kernel.run(ctypes.byref(call), step, step + 1)
    assert torch.equal(y, wanted)


def guarded(size: int) -> tuple[Tensor, Tensor]:
    """Bytes at an odd place (a multiple of 4), and all around them."""
    whole = torch.full((size + 256,), GUARD, dtype=torch.uint8)
    start = 100 - whole.data_ptr() % 4
    return whole[start : start + size], whole


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("rows", "in_", "out"), [(1, 1, 1), (7, 33, 47), (13, 6, 18), (8, 64, 48)])
def test_nothing_is_written_outside_of_the_buffers(
    kernel: str, rows: int, in_: int, out: int
) -> None:
    weights, scales, bias = drawn(in_, out)
    layer, x = QuantisedLinear(weights, scales, bias, kernel=kernel), torch.randn(rows, in_)
    wanted, run = layer(x), layer.kernel
    sizes = (run.packed_bytes(in_, out), run.quantised_bytes(rows, in_), rows * out * 4)
    inside, whole = zip(*map(guarded, sizes), strict=True)
    packed, quantised, y = (each.data_ptr() for each in inside)
    run.pack(in_, out, weights.data_ptr(), scales.data_ptr(), bias.data_ptr(), packed)
    run.quantise(x.data_ptr(), rows, in_, 0, rows, quantised)
    call = layer._call
    call.packed, call.quantised, call.y = packed, quantised, y
    run.run(ctypes.byref(call), 0, run.steps(ctypes.byref(call)))
    assert torch.equal(inside[2].clone().view(torch.float32).view(rows, out), wanted)
    for part, everything in zip(inside, whole, strict=True):
        part.fill_(GUARD)
        assert (everything == GUARD).all()


def test_leading_axes_stay_as_they_are_and_no_rows_are_fine() -> None:
    layer = QuantisedLinear(*drawn(24, 10))
    x = torch.randn(2, 3, 24)
    assert torch.equal(layer(x), layer(x.view(6, 24)).view(2, 3, 10))
    assert layer(torch.zeros(0, 24)).shape == (0, 10)


def test_the_reference_says_what_the_kernels_compute() -> None:
    torch.manual_seed(0)
    weights, scales, bias = drawn(90, 70)
    x = torch.randn(21, 90)
    for activation in ACTIVATIONS:
        layer = QuantisedLinear(weights, scales, bias, activation=activation)
        fast, slow = layer(x), torch.empty(21, 70)
        layer._call.quantised, layer._call.y = x.data_ptr(), slow.data_ptr()
        places = [ctypes.c_void_p(each.data_ptr()) for each in (weights, scales, bias)]
        reference().ep_linear_reference(ctypes.byref(layer._call), *places)
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=2e-6)


def test_sizes_and_types_that_do_not_fit_are_refused() -> None:
    weights, scales, bias = drawn(8, 4)
    for options, problem in (
        ({"weights": weights.int()}, r"got weights \[4, 8\] of torch.int32"),
        ({"scales": scales[:3]}, r"got scales \[3\] of torch.float32, wanted \[4\]"),
        ({"bias": bias.double()}, r"got bias \[4\] of torch.float64"),
        ({"activation": "tanh"}, "got activation 'tanh', wanted none, relu, gelu"),
        ({"kernel": "mmx"}, "this machine runs no kernel 'mmx'"),
        ({"weights": torch.zeros(4, 0, dtype=torch.int8)}, "inputs outside 1 to 65,536"),
    ):
        with pytest.raises(InputError, match=problem):
            QuantisedLinear(**{"weights": weights, "scales": scales, "bias": bias, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"got x \[3, 9\] of torch.float32, wanted \[..., 8\]"):
        QuantisedLinear(weights, scales)(torch.zeros(3, 9))
