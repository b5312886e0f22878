"""BatchNorm statistics of a cut program are those of what it reads."""

from __future__ import annotations

import pytest
import torch
from models import inputs, noise, program, sites
from torch import Tensor, nn

from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.program import walk as walk_module
from edgeprune.program.batch_norm import Moments, batch_norms, carried, moments_of
from edgeprune.program.walk import Walk
from edgeprune.recover import reestimate, refit
from edgeprune.sites import find_sites

SIZES = (5, 1, 16)


class Chain(nn.Module):
    """Three BatchNorms, each behind the one before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (2, 6, 8, 4)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False)
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        return self.head(x.mean((2, 3)))


def chain_program(module: Chain) -> Program:
    return capture(module.eval(), (noise(3, 2, 6, 6, seed=0),))


def batches_of(*sizes: int) -> list[tuple[Tensor]]:
    return [(noise(size, 2, 6, 6, seed=size) + size / 8,) for size in sizes]


def test_statistics_are_those_of_the_whole_data_in_one_training_batch() -> None:
    module = Chain()
    found = reestimate(chain_program(module), batches_of(*SIZES))
    for norm in module.norms:
        norm.momentum = 1.0
    module.train()(torch.cat([x for (x,) in batches_of(*SIZES)]))
    count = sum(SIZES) * 36
    for i, norm in enumerate(module.norms):
        torch.testing.assert_close(found.tensors[f"norms.{i}.running_mean"], norm.running_mean)
        unbiased = found.tensors[f"norms.{i}.running_var"] * count / (count - 1)
        torch.testing.assert_close(unbiased, norm.running_var)


def test_every_batch_norm_then_gives_mean_0_and_variance_1() -> None:
    dense = program("convolutional")
    batches = [inputs("convolutional", n, n) for n in SIZES]
    found = reestimate(dense, batches)
    walk = Walk(found.module, batches)
    assert len(batch_norms(found.module)) == 4
    for norm in batch_norms(found.module):
        now = moments_of(walk.inputs_of(norm.node))
        mean, variance = (found.tensors[path].double() for path in (norm.mean, norm.variance))
        torch.testing.assert_close(mean, now.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(variance, now.variance, rtol=1e-4, atol=1e-5)


def test_the_given_program_keeps_its_statistics() -> None:
    dense = chain_program(Chain())
    before = dense.fingerprint
    found = reestimate(dense, batches_of(4))
    assert type(dense)(*_fields(dense)).fingerprint == before != found.fingerprint


def _fields(given: Program) -> tuple[object, ...]:
    return given.module, given.example_inputs, given.input_names, given.output_names, given.meta


def test_a_program_without_batch_norm_is_untouched() -> None:
    assert reestimate(program("bert"), [inputs("bert", 4, 1)]) is program("bert")


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    parts = [noise(n, 3, 4, seed=n) * n for n in SIZES]
    summed = moments_of(parts)
    whole = torch.cat(parts).double().movedim(1, 0).flatten(1)
    assert summed.count == whole.shape[1]
    torch.testing.assert_close(summed.mean, whole.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(summed.variance, whole.var(1, correction=0), rtol=1e-5, atol=1e-6)


def test_statistics_are_carried_as_a_rescaling_carries_all_data() -> None:
    factor, offset, epsilon = 3.0, -2.0, 1e-5
    training, few = noise(500, 4, seed=1) * 2 + 1, noise(9, 4, seed=2)
    stored, before = moments_of([training]), moments_of([few])
    mean, variance = stored.mean, stored.variance
    after = Moments(9, before.mean * factor + offset, before.variance * factor**2)
    got_mean, got_variance = carried(mean, variance, before, after, epsilon)
    torch.testing.assert_close(got_mean, mean * factor + offset, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got_variance, variance * factor**2, rtol=1e-4, atol=1e-4)


def test_statistics_that_no_cut_reaches_stay_however_few_the_examples() -> None:
    found = sites("convolutional")
    last = [site for site in found.cuttable if site.axis == "channels"][-1]
    plan = Plan(found.program.fingerprint, {last.name: tuple(range(0, last.units, 2))})
    slim = refit(found, plan, [inputs("convolutional", 2, 1)])
    dense = found.program.tensors
    for path, tensor in slim.tensors.items():
        if path.startswith("blocks.0.norm"):
            torch.testing.assert_close(tensor, dense[path], rtol=1e-6, atol=0)
    changed = "blocks.1.norm2.running_mean"
    assert not torch.allclose(slim.tensors[changed], dense[changed], rtol=1e-3)


def test_a_cut_with_statistics_keeps_the_scale_of_what_follows() -> None:
    module = Chain()
    dense = reestimate(chain_program(module), batches_of(*SIZES))
    found = find_sites(dense)
    first = found.cuttable[0]
    slim = refit(found, Plan(dense.fingerprint, {first.name: (0,)}), batches_of(*SIZES))
    walk = Walk(slim.module, batches_of(*SIZES))
    for norm in batch_norms(slim.module):
        now = moments_of(walk.inputs_of(norm.node))
        torch.testing.assert_close(
            slim.tensors[norm.variance].double(), now.variance, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("saved", [walk_module.SAVED_BYTES, 4000, 0])
def test_a_walk_reads_what_the_program_computes_whatever_it_may_keep(
    saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_module, "SAVED_BYTES", saved)
    dense = chain_program(Chain())
    norms, batches = batch_norms(dense.module), batches_of(*SIZES)
    walk = Walk(dense.module, batches)
    module = Chain().eval()
    with torch.no_grad():
        for i, norm in enumerate(norms):
            for (x,), got in zip(batches, walk.inputs_of(norm.node), strict=True):
                for j in range(i):
                    x = module.norms[j](module.convs[j](x)).relu()
                torch.testing.assert_close(got, module.convs[i](x))
