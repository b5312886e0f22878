"""fp16 files: half the size, the same inputs and outputs, the numbers of the program."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from lower_blocks import TOKENS, encoder, encoder_inputs, lowered_encoder
from torch import Tensor, nn

from edgeprune.devices import connect
from edgeprune.lower import Lowered, Lowering, lower_graph
from edgeprune.lower.half import LARGEST, to_half
from edgeprune.lower.prepare import prepare
from edgeprune.validate.numerics import MAX_ERROR

# Files of the encoder are lowered once.
pytestmark = pytest.mark.xdist_group("encoder")

LOWERINGS = (
    Lowering("fp16"),
    Lowering("fp16", delegate="off"),
    Lowering("fp16", "litert"),
    Lowering("fp16", "litert", delegate="off"),
)


def run(lowered: Lowered, inputs: tuple[Tensor, ...], lowering: Lowering, folder: Path) -> Tensor:
    path = folder / f"model{lowering.suffix}"
    path.write_bytes(lowered.data)
    with connect("local") as device, device.predictor(path) as predict:
        got = predict(inputs)
    assert isinstance(got, Tensor)
    return got


@pytest.mark.parametrize(
    "lowering",
    [
        each if each == Lowering("fp16") else pytest.param(each, marks=pytest.mark.nightly)
        for each in LOWERINGS
    ],
    ids=str,
)
def test_an_fp16_file_gives_what_the_module_computes(lowering: Lowering, tmp_path: Path) -> None:
    inputs = encoder_inputs(rows=4)
    lowered = lowered_encoder(lowering)
    assert [each.dtype for each in lowered.outputs] == [torch.float32]
    got, wanted = run(lowered, inputs, lowering, tmp_path), encoder()(*inputs)
    assert got.dtype == torch.float32
    assert (got - wanted).abs().max() <= MAX_ERROR["fp16"] * wanted.abs().max()
    assert not torch.equal(got, run(lowered_encoder(Lowering()), inputs, Lowering(), tmp_path)), (
        "nothing was rounded to half"
    )


def test_attention_and_layer_norms_take_half_floats_in_our_delegate() -> None:
    rows = lowered_encoder(Lowering("fp16")).delegation
    ours = Counter(row.op for row in rows if row.delegate == "edgeprune")
    assert ours == {"edgeprune.add_layer_norm.default": 5, "edgeprune.slim_attention.default": 2}


@pytest.mark.parametrize("runtime", ["executorch", "litert"])
def test_weights_take_half_the_bytes(runtime: str) -> None:
    module, x = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 128)), torch.randn(1, 4, 256)
    whole, half = (
        len(lower_graph(module.eval(), (x,), Lowering(precision, runtime)).data)  # type: ignore[arg-type]
        for precision in ("fp32", "fp16")
    )
    weights = 2 * (256 * 512 + 512 * 128)
    assert whole - half == pytest.approx(weights, rel=0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("lowering", LOWERINGS[:2], ids=str)
def test_padding_changes_nothing(lowering: Lowering, tmp_path: Path) -> None:
    lowered = lowered_encoder(lowering)
    ids, mask = encoder_inputs()
    other = torch.where(mask == 1, ids, 49 - ids)
    one, two = (run(lowered, (each, mask), lowering, tmp_path) for each in (ids, other))
    assert not torch.equal(ids, other) and torch.equal(one, two)


class Masked(nn.Module):
    """Two masks of -1e9, one of them a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("future", torch.full((TOKENS, TOKENS), -1e9).triu(1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = x @ x.transpose(1, 2) + self.future + (1.0 - mask) * -1e9
        return torch.softmax(scores, -1) @ x


def test_masks_stay_finite_in_half_floats(tmp_path: Path) -> None:
    mask = torch.ones(1, 1, TOKENS)
    mask[..., TOKENS - 3 :] = 0
    inputs = (torch.randn(1, TOKENS, 8), mask)
    graph = prepare(Masked(), inputs)
    to_half(graph)
    held = [each for each in graph.buffers() if each.dtype == torch.float16]
    assert held and all(each.abs().max() <= LARGEST for each in held)
    lowered = lower_graph(Masked().eval(), inputs, LOWERINGS[0])
    got = run(lowered, inputs, LOWERINGS[0], tmp_path)
    torch.testing.assert_close(got, Masked()(*inputs), atol=1e-2, rtol=1e-2)
