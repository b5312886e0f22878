"""Criteria by gradients and curvature are what their papers define, computed the long way here."""

from __future__ import annotations

import pytest
import torch
from models import inputs, noise, sites
from planted import HEAD_SITE, NEURON_SITE, planted, silence_head, silence_neuron
from small import about, convolutions
from torch import nn

from edgeprune.errors import InputError
from edgeprune.importance import CRITERIA, Evidence, hessian_trace, rank_units, taylor_so
from edgeprune.importance.hessian_trace import hessian_diagonal


class Perceptron(nn.Module):
    """Five inputs, six neurons, three classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).tanh())


def test_hutchinsons_trace_is_within_a_tenth_of_the_exact_one() -> None:
    torch.manual_seed(0)
    x, labels = noise(20, 4, seed=1), torch.arange(20) % 3
    shapes = [(6, 4), (6,), (3, 6), (3,)]
    weights = [(0.5 * noise(*shape, seed=i)).requires_grad_() for i, shape in enumerate(shapes)]

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        up, up_bias, down, bias = weights
        hidden = nn.functional.linear(x, up, up_bias).tanh()
        return nn.functional.cross_entropy(nn.functional.linear(hidden, down, bias), labels)

    hessian = torch.autograd.functional.hessian(loss, tuple(weights))
    generator = torch.Generator().manual_seed(0)
    found = hessian_diagonal(loss(*weights), weights, generator, draws=400)
    for i, diagonal in enumerate(found):
        count = weights[i].numel()
        exact = float(hessian[i][i].reshape(count, count).trace())
        assert float(diagonal.sum()) == pytest.approx(exact, rel=0.1)


def test_hessian_trace_weighs_curvature_by_the_weights_of_the_unit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hessian_trace, "DRAWS", 400)
    evidence, site = about(Perceptron().eval(), 32, 5)
    scores = CRITERIA["hessian_trace"].score(evidence, site)
    program = evidence.sites.program
    names = ("up.weight", "up.bias")
    weights = [program.tensors[name].detach() for name in names]

    def movement(*given: torch.Tensor) -> torch.Tensor:
        tensors = dict(zip(names, given, strict=True))
        moved = [
            torch.func.functional_call(program.module, tensors, batch) - dense[0]
            for batch, dense in zip(evidence.batches, evidence.outputs, strict=True)
        ]
        return torch.cat(moved).square().sum() / evidence.spread[0]

    blocks = torch.autograd.functional.hessian(movement, tuple(weights))
    curvature = blocks[0][0].reshape(30, 30).diagonal().reshape(6, 5)
    curvature = torch.cat([curvature, blocks[1][1].diagonal()[:, None]], 1)
    norms = torch.cat([weights[0], weights[1][:, None]], 1).square().sum(1)
    wanted = (curvature.mean(1) * norms / 2).double()
    assert torch.corrcoef(torch.stack([scores, wanted]))[0, 1] > 0.95
    assert float(scores.sum()) == pytest.approx(float(wanted.sum()), rel=0.1)


def test_hessian_trace_changes_no_weight_and_reaches_through_attention() -> None:
    program = sites("fused").program
    before = program.fingerprint
    evidence = Evidence(sites("fused"), [inputs("fused", 3, 1)])
    scores = CRITERIA["hessian_trace"].score(evidence, evidence.sites.get(HEAD_SITE))
    assert (scores != 0).all()
    assert program.fingerprint == before
    assert all(each.grad is None for each in program.module.parameters())


def test_taylor_so_is_half_the_fisher_information_of_the_gates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(taylor_so, "DRAWS", 300)
    evidence, site = about(Perceptron().eval(), 4, 5)
    found = CRITERIA["taylor_so"].score(evidence, site)
    gate = evidence.gated.gates[site.name]
    exact = torch.zeros(site.units)
    examples = [x[None] for (batch,) in evidence.batches for x in batch]
    for x in examples:
        likely = evidence.gated(x)[0].log_softmax(-1)
        for each in likely:
            (slope,) = torch.autograd.grad(each, [gate], retain_graph=True)
            exact += each.exp().detach() * slope.square() / len(examples)
    torch.testing.assert_close(found, exact / 2, rtol=0.2, atol=0.02 * float(exact.max()))


def test_gate_taylor_is_the_mean_absolute_gradient_of_the_loss_by_the_gate() -> None:
    evidence, site = about(Perceptron().eval(), 4, 5, labels=True)
    gate = evidence.gated.gates[site.name]
    assert evidence.labels is not None
    slopes = []
    for (batch,), labels in zip(evidence.batches, evidence.labels, strict=True):
        for x, label in zip(batch, labels, strict=True):
            loss = nn.functional.cross_entropy(evidence.gated(x[None]), label[None])
            slopes.append(torch.autograd.grad(loss, [gate])[0].abs())
    wanted = torch.stack(slopes).mean(0)
    torch.testing.assert_close(CRITERIA["gate_taylor"].score(evidence, site), wanted)


def test_labels_may_be_numbers_to_come_near_to() -> None:
    evidence, site = about(Perceptron().eval(), 4, 5)
    far = Evidence(evidence.sites, evidence.batches, labels=[noise(4, 3, seed=7)] * 2)
    same = Evidence(evidence.sites, evidence.batches, labels=[x for (x,) in evidence.outputs])
    score = CRITERIA["gate_taylor"].score
    assert (score(far, site) > 0).all()
    assert float(score(same, site).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["taylor_so", "gate_taylor"])
def test_a_unit_that_nothing_reads_goes_first(name: str) -> None:
    def silent(block: nn.Module) -> None:
        silence_head(block, 2)
        silence_neuron(block, 7)

    unlabelled = planted(silent)
    labels = [outputs[0].argmax(-1) for outputs in unlabelled.outputs]
    evidence = Evidence(unlabelled.sites, unlabelled.batches, labels=labels)
    orders = rank_units(evidence, name)
    assert orders[HEAD_SITE][-1] == 2
    assert orders[NEURON_SITE][-1] == 7


@pytest.mark.parametrize("name", ["gate_taylor", "shapley"])
def test_a_criterion_by_labels_says_where_they_should_come_from(name: str) -> None:
    evidence, _ = about(Perceptron().eval(), 4, 5)
    with pytest.raises(InputError, match=f"'{name}': needs labels.*Task.calibration_labels"):
        rank_units(evidence, name)


def test_taylor_fo_ranks_channels_across_layers_as_masking_them_does() -> None:
    network = convolutions()
    evidence, _ = about(network, 32, 2, 8, 8)
    widths = [site for site in evidence.sites.cuttable if site.kind == "width"]
    found, truth = (
        torch.cat([CRITERIA[name].score(evidence, site).double() for site in widths])
        for name in ("taylor_fo", "output_damage")
    )
    ranks = torch.stack([each.argsort().argsort().double() for each in (found, truth)])
    assert torch.corrcoef(ranks)[0, 1] >= 0.7
