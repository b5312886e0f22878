"""What cannot be captured is refused with the node or weight, and the line of the model."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401  # registers quantized_decomposed
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import InputError
from edgeprune.program import capture
from edgeprune.program.capture import from_exported

QUANTISED = torch.ops.quantized_decomposed


class OneLayer(nn.Module):
    """``[batch, 4]`` to ``[batch, 4]``, and then ``after``."""

    def __init__(self, after: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(x))


def branches(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def quantised(x: Tensor) -> Tensor:
    small = QUANTISED.quantize_per_tensor(x, 0.1, 0, -128, 127, torch.int8)
    return QUANTISED.dequantize_per_tensor(small, 0.1, 0, -128, 127, torch.int8)


def dropping(x: Tensor) -> Tensor:
    return functional.dropout(x)


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def refusal(model: nn.Module) -> str:
    with pytest.raises(InputError) as error:
        capture(model, (torch.randn(2, 4),))
    assert "\n" not in str(error.value)
    return str(error.value)


def line_of(function: Callable[..., Tensor], offset: int) -> str:
    return f"test_refusals.py:{function.__code__.co_firstlineno + offset}"


def test_control_flow_on_values_is_refused_with_its_line() -> None:
    assert line_of(branches, 1) in refusal(OneLayer(branches))


@pytest.mark.parametrize(("draws", "name"), [(dropping, "dropout"), (noisy, "randn_like")])
def test_chance_in_eval_mode_is_refused_with_its_line(
    draws: Callable[[Tensor], Tensor], name: str
) -> None:
    said = refusal(OneLayer(draws))
    assert name in said and "draws by chance" in said and line_of(OneLayer.forward, 1) in said


def test_a_dropout_that_is_off_draws_nothing() -> None:
    capture(OneLayer(nn.Dropout(0.5)).eval(), (torch.randn(2, 4),))
    attend = lambda x: functional.scaled_dot_product_attention(*[x[:, None]] * 3)[:, 0]  # noqa: E731
    capture(OneLayer(attend).eval(), (torch.randn(2, 4),))


def test_a_quantised_program_is_refused_with_its_first_operator_and_line() -> None:
    said = refusal(OneLayer(quantised))
    assert "quantize_per_tensor" in said and line_of(OneLayer.forward, 1) in said
    assert "--precision int8" in said


@pytest.mark.parametrize(("kind", "word"), [(torch.complex64, "complex64"), (torch.int8, "int8")])
def test_weights_that_are_no_floats_are_refused_by_name(kind: torch.dtype, word: str) -> None:
    model = OneLayer()
    model.scale = nn.Parameter(torch.ones(4).to(kind), requires_grad=False)
    model.after = lambda x: x * model.scale.real.to(x.dtype)
    assert re.match(rf"weight scale: got {word}, wanted float32", refusal(model))


def test_a_size_left_open_beside_the_batch_is_refused() -> None:
    dynamic = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")},)
    exported = torch.export.export(OneLayer(), (torch.randn(2, 5, 4),), dynamic_shapes=dynamic)
    with pytest.raises(InputError, match=r"input x: dimension 1 is dynamic .* wanted a fixed size"):
        from_exported(exported)
