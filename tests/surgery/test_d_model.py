"""The residual stream's width: exact under root mean square norms, marked where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from axis_models import given, program, sites
from models import NEURONS, WIDTH, WORDS, noise, relative_error
from torch import Tensor, nn

from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply, gate, masked

DOUBLE = torch.float64
HALF = tuple(range(1, WIDTH, 2))


def plan_of(found: Sites, **more: tuple[int, ...]) -> Plan:
    return Plan(found.program.fingerprint, {"d_model": HALF} | more)


def test_masked_equals_removed_under_root_mean_square_norms() -> None:
    found = sites("rms", DOUBLE)
    both: dict[str, tuple[int, ...]] = {
        "layers.0.heads": (0, 3),
        "layers.1.neurons": tuple(range(3, NEURONS)),
    }
    for plan in (plan_of(found), plan_of(found, **both)):
        (ids,) = given("rms", seed=7)
        got, wanted = apply(found.program, plan, found)(ids), masked(found, plan)(ids)
        assert relative_error(got, wanted) <= 1e-9
        assert relative_error(got, found.program(ids)) > 1e-2
    assert found.get("d_model").exact


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied"])
def test_masked_equals_removed_in_a_llama_whose_norms_are_written_out(name: str) -> None:
    found = sites(name)
    (ids,) = given(name, seed=7)
    got, wanted = apply(found.program, plan_of(found))(ids), masked(found, plan_of(found))(ids)
    assert found.get("d_model").exact and relative_error(got, wanted) <= 1e-5


def test_a_tied_table_loses_its_columns_once_for_looking_up_and_for_scoring() -> None:
    slim = apply(program("llama_tied"), plan_of(sites("llama_tied")))
    tables = [tuple(t.shape) for t in slim.tensors.values() if WORDS in t.shape]
    assert tables == [(WORDS, WIDTH // 2)]


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_under_layer_norms_the_cut_runs_trains_and_says_that_it_is_inexact(name: str) -> None:
    found = sites(name)
    site = found.get("d_model")
    assert site in found.cuttable and not site.exact
    assert "layer_norm" in (site.inexact or "") and "normalises over it" in (site.inexact or "")
    slim = apply(found.program, plan_of(found), found)
    assert all(WIDTH not in t.shape for path, t in slim.tensors.items() if "LayerNorm" in path)
    loss = slim(*given(name)).square().mean()
    loss.backward()
    weights = [t for t in slim.tensors.values() if isinstance(t, nn.Parameter)]
    torch.optim.SGD(weights, lr=1e-3).step()
    assert float(slim(*given(name)).square().mean()) < float(loss)


def test_a_slim_stream_is_cut_again_and_both_cuts_are_as_one(tmp_path: Path) -> None:
    found = sites("rms", DOUBLE)
    first = apply(found.program, plan_of(found), found)
    again = find_sites(first)
    assert again.get("d_model").units == len(HALF)
    twice = apply(first, Plan(first.fingerprint, {"d_model": tuple(range(8))}), again)
    once = apply(found.program, Plan(found.program.fingerprint, {"d_model": HALF[:8]}), found)
    (ids,) = given("rms", seed=3)
    assert relative_error(twice(ids), once(ids)) <= 1e-12


class HandMade(nn.Module):
    """A hidden layer that a norm of our own reads."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 12), nn.Linear(12, 4), norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.norm == "mean":
            y = y - y.mean(-1, keepdim=True)
        elif self.norm == "mean of squares":
            y = y / (y.square().mean(dim=-1, keepdim=True) + 0.1).sqrt()
        elif self.norm == "two dimensions":
            y = y * y.unflatten(-1, (3, 4)).mean((-2, -1)).unsqueeze(-1)
        else:
            y = y / y.var(-1, keepdim=True)
        return self.second(y)


@pytest.mark.parametrize("norm", ["mean", "mean of squares", "two dimensions"])
def test_a_mean_counts_what_was_removed_as_zero(norm: str) -> None:
    torch.manual_seed(0)
    found = find_sites(capture(HandMade(norm).double(), (noise(3, 6, seed=0).double(),)))
    widths = [s for s in found.cuttable if s.kind == "width"]
    plan = Plan(found.program.fingerprint, {s.name: tuple(range(1, s.units)) for s in widths})
    x = noise(4, 6, seed=1).double()
    got, wanted = apply(found.program, plan, found)(x), masked(found, plan)(x)
    assert all(site.exact for site in widths) and relative_error(got, wanted) <= 1e-9


def test_a_variance_is_inexact_and_names_the_line_that_takes_it() -> None:
    found = find_sites(capture(HandMade("variance"), (noise(3, 6, seed=0),)))
    (site,) = (s for s in found.cuttable if s.kind == "width")
    assert site.inexact is not None and "var" in site.inexact
    assert "test_d_model.py:" in site.inexact and "/" not in site.inexact


@pytest.mark.parametrize("name", ["rms", "bert"])
def test_gates_on_the_stream_are_open_at_first_and_have_gradients(name: str) -> None:
    gated = gate(sites(name))
    out = gated(*given(name))
    assert torch.equal(out, program(name)(*given(name)))
    out.square().sum().backward()
    gradient = gated.gates["d_model"].grad
    assert gradient is not None and int(gradient.count_nonzero()) == WIDTH
