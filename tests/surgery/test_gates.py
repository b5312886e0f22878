"""Gates: open they change nothing, shut they mask, and their gradients are true."""

from __future__ import annotations

import pytest
import torch
from models import MODELS, inputs, noise, program, relative_error, sites

from edgeprune.plan import Plan
from edgeprune.surgery import gate, masked

DOUBLE = torch.float64


@pytest.mark.parametrize("name", MODELS)
def test_open_gates_change_nothing(name: str) -> None:
    gated = gate(sites(name))
    given_ = inputs(name, batch=4, seed=1)
    assert torch.equal(gated(*given_), program(name)(*given_))


@pytest.mark.parametrize("name", MODELS)
def test_there_is_a_gate_for_every_unit_that_can_be_cut_and_every_sublayer(name: str) -> None:
    gated, found = gate(sites(name)), sites(name)
    wanted = {s.name: s.units for s in found.cuttable if s.kind == "width" or s.axis == "sublayer"}
    assert {name: gate.numel() for name, gate in gated.gates.items()} == wanted


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_a_gate_is_the_slope_of_the_output(name: str) -> None:
    gated = gate(sites(name, DOUBLE))
    given_ = inputs(name, seed=1, dtype=DOUBLE)
    probe = noise(*gated(*given_).shape, seed=2).double()
    (gated(*given_) * probe).sum().backward()
    step = 2.0**-7  # Llama's norms work in single precision whatever the model's type
    for gate_name, factors in gated.gates.items():
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                factors[-1] += sign * step
                ends.append((gated(*given_) * probe).sum())
                factors[-1] -= sign * step
        slope = (ends[0] - ends[1]) / (2 * step)
        assert factors.grad is not None
        assert torch.isclose(factors.grad[-1].double(), slope, rtol=3e-3, atol=3e-3), gate_name


@pytest.mark.parametrize("name", MODELS)
def test_shutting_a_unit_moves_the_output_and_opening_it_moves_it_back(name: str) -> None:
    gated = gate(sites(name))
    given_ = inputs(name, seed=1)
    whole = program(name)(*given_)
    for gate_name, factors in gated.gates.items():
        gated.set(gate_name, (factors.numel() - 1,) if factors.numel() > 1 else ())
        assert not torch.equal(gated(*given_), whole), gate_name
        gated.set(gate_name, None)
        assert torch.equal(gated(*given_), whole), gate_name


def test_masking_a_sublayer_equals_masking_all_that_it_adds() -> None:
    found = sites("fused")
    name = "layers.1.ffn"
    shut = masked(found, Plan(found.program.fingerprint, {name: ()}))
    weights = found.program.tensors
    saved = {path: weights[path].detach().clone() for path in ("layers.1.down.weight",)}
    quiet = gate(found).program
    with torch.no_grad():
        quiet.tensors["layers.1.down.weight"].zero_()
        quiet.tensors["layers.1.down.bias"].zero_()
    given_ = inputs("fused", seed=1)
    assert relative_error(shut(*given_), quiet(*given_)) <= 1e-6
    assert torch.equal(weights["layers.1.down.weight"], saved["layers.1.down.weight"])


def test_masking_a_layer_equals_masking_its_sublayers() -> None:
    found = sites("fused")
    layer = found.residuals[-1].layer
    assert layer is not None
    parts = {r.name: () for r in found.residuals if r.layer == layer}
    one, other = (masked(found, Plan(found.program.fingerprint, k)) for k in ({layer: ()}, parts))
    given_ = inputs("fused", seed=1)
    assert len(parts) == 2 and torch.equal(one(*given_), other(*given_))
