"""The refit makes the best of the units that stay."""

from __future__ import annotations

import random

import pytest
import torch
from models import TOKENS, WIDTH, Fused, FusedBlock, inputs, model, noise, program, sites
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.importance.evidence import values_at
from edgeprune.importance.readers import reader_of
from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.program.program import as_tuple
from edgeprune.recover import refit
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply
from edgeprune.task import Batch

HEAD_DIM = 8


def batches_of(name: str, examples: int = 32, count: int = 2) -> list[Batch]:
    return [inputs(name, examples, seed) for seed in range(1, count + 1)]


def half(found: Sites, *axes: str) -> dict[str, tuple[int, ...]]:
    """Every second unit of all sites of these axes."""
    return {s.name: tuple(range(0, s.units, 2)) for s in found.cuttable if s.axis in axes}


@torch.no_grad()
def distance(one: Program, two: Program, batches: list[Batch]) -> float:
    """Squared distance of two programs' outputs."""
    return sum(
        float((a - b).double().square().sum())
        for batch in batches
        for a, b in zip(as_tuple(one(*batch)), as_tuple(two(*batch)), strict=True)
    )


@torch.no_grad()
def test_units_that_others_can_stand_for_are_made_up_for_exactly() -> None:
    module = model("fused")
    assert isinstance(module, Fused)
    for block in module.layers:
        assert isinstance(block, FusedBlock)
        block.up.weight[20:] = block.up.weight[:20]
        block.up.bias[20:] = block.up.bias[:20]
        for rows in (*block.qkv.weight.chunk(3), *block.qkv.bias.chunk(3)):
            rows[2 * HEAD_DIM :] = rows[: 2 * HEAD_DIM]
    found = find_sites(capture(module, inputs("fused")))
    kept = {s.name: tuple(range(s.units // 2)) for s in found.cuttable if s.kind == "width"}
    batches = batches_of("fused")
    slim = refit(found, Plan(found.program.fingerprint, kept), batches)
    plain = apply(found.program, Plan(found.program.fingerprint, kept), found)
    for batch in batches:
        wanted = found.program(*batch)
        torch.testing.assert_close(slim(*batch), wanted, rtol=0, atol=1e-3)
        assert float((plain(*batch) - wanted).abs().max()) > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_the_refit_brings_random_plans_nearer_to_dense(seed: int) -> None:
    found, chooser = sites("bert"), random.Random(seed)
    kept = {
        s.name: tuple(sorted(chooser.sample(range(s.units), chooser.randint(1, s.units - 1))))
        for s in found.cuttable
        if s.kind == "width" and chooser.random() < 0.8
    }
    plan = Plan(found.program.fingerprint, kept)
    batches = batches_of("bert")
    plain, slim = apply(found.program, plan, found), refit(found, plan, batches)
    assert slim.parameters == plain.parameters
    dense = program("bert")
    assert distance(slim, dense, batches) < distance(plain, dense, batches)


@torch.no_grad()
def test_a_later_refit_sees_what_was_cut_before() -> None:
    found = sites("bert")
    plan = Plan(found.program.fingerprint, half(found, "heads", "ffn"))
    last = list(plan.kept)[-1]
    batches = batches_of("bert", 40, 2)
    before = refit(found, plan.only(*(name for name in plan.kept if name != last)), batches)
    reader = reader_of(found, last)
    assert reader is not None and reader.bias is not None
    node = next(n for n in before.module.graph.nodes if n.name == reader.node.name)
    (parts,) = zip(*(values_at(before.module, [node.args[0]], b) for b in batches), strict=True)
    x = torch.cat(parts).flatten(0, -2).double()
    dense = found.program.tensors
    wanted = x @ dense[reader.weight].double().T + dense[reader.bias].double()
    new = refit(found, plan, batches).tensors
    kept = x[:, reader.columns(plan.kept[last])]
    with_one = torch.cat([kept, torch.ones(len(kept), 1)], dim=1)
    best = with_one @ torch.linalg.lstsq(with_one, wanted).solution
    alone = refit(found, plan.only(last), batches).tensors
    ours, blind = (
        kept @ each[reader.weight].double().T + each[reader.bias].double() for each in (new, alone)
    )
    error, without, least = (float((y - wanted).square().sum()) for y in (ours, blind, best))
    assert error < 1.02 * least  # the ridge takes 1%
    assert without > 1.1 * least


def test_the_given_program_is_never_touched() -> None:
    found = sites("bert")
    before = {path: tensor.detach().clone() for path, tensor in found.program.tensors.items()}
    nodes = [str(node.format_node()) for node in found.program.module.graph.nodes]
    slim = refit(found, Plan(found.program.fingerprint, half(found, "heads")), batches_of("bert"))
    for path, tensor in found.program.tensors.items():
        assert torch.equal(tensor, before[path])
    assert nodes == [str(node.format_node()) for node in found.program.module.graph.nodes]
    own = {tensor.data_ptr() for tensor in slim.tensors.values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in found.program.tensors.values())


def test_the_same_plan_and_data_give_the_same_bits() -> None:
    found, batches = sites("fused"), batches_of("fused")
    plan = Plan(found.program.fingerprint, half(found, "heads", "ffn"))
    assert refit(found, plan, batches).fingerprint == refit(found, plan, batches).fingerprint


def test_depth_and_length_are_cut_as_the_plan_says() -> None:
    found = sites("bert")
    kept = half(found, "heads", "ffn") | {"bert.encoder.layer.1.ffn": ()}
    plan = Plan(found.program.fingerprint, kept, {"bert.encoder.layer.0.tokens": TOKENS // 2})
    uncut = Plan(plan.program, {"bert.encoder.layer.1.ffn": ()}, plan.tokens)
    batches = batches_of("bert")
    slim, plain, target = (
        refit(found, plan, batches),
        apply(found.program, plan, found),
        apply(found.program, uncut, found),
    )
    assert slim.parameters == plain.parameters
    assert distance(slim, target, batches) < distance(plain, target, batches)


def test_a_removed_layer_takes_its_refits_with_it() -> None:
    found = sites("bert")
    (layer, *_) = found.layers
    plan = Plan(found.program.fingerprint, half(found, "heads", "ffn") | {layer.name: ()})
    slim = refit(found, plan, batches_of("bert"))
    assert not any(path.startswith(f"{layer.name}.") for path in slim.tensors)
    assert slim(*inputs("bert")).shape == (3, WIDTH)


def test_an_empty_plan_changes_nothing() -> None:
    found = sites("fused")
    slim = refit(found, Plan(found.program.fingerprint), batches_of("fused"))
    assert slim.fingerprint == found.program.fingerprint


def test_sites_without_a_reader_of_their_own_keep_their_weights() -> None:
    found = sites("densely_connected")
    plan = Plan(found.program.fingerprint, half(found, "channels"))
    several = plan.only(*(name for name in plan.kept if reader_of(found, name) is None))
    assert several.kept
    slim = refit(found, several, batches_of("densely_connected"))
    plain = apply(found.program, several, found)
    for path, tensor in plain.tensors.items():
        if isinstance(tensor, nn.Parameter):
            assert torch.equal(slim.tensors[path], tensor)


def test_two_sites_with_one_reader_are_refitted_together() -> None:
    found = sites("llama")
    plan = Plan(
        found.program.fingerprint,
        {f"llama.layers.0.{axis}": (1,) for axis in ("kv_groups", "queries_per_group")},
    )
    batches = batches_of("llama")
    slim, plain = refit(found, plan, batches), apply(found.program, plan, found)
    path = "llama.layers.0.self_attn.o_proj.weight"
    assert slim.tensors[path].shape == plain.tensors[path].shape == (WIDTH, HEAD_DIM)
    dense = program("llama")
    assert distance(slim, dense, batches) < distance(plain, dense, batches)


def test_what_is_cut_for_other_readers_too_is_not_refitted() -> None:
    found = find_sites(capture(SideBySide(), (noise(3, 6, seed=0),)))
    kept = {site.name: (0, 1) for site in found.cuttable if site.units in (4, 5)}
    assert len(kept) == 2
    batches: list[Batch] = [(noise(50, 6, seed=1),)]
    both = Plan(found.program.fingerprint, kept)
    slim, plain = refit(found, both, batches), apply(found.program, both, found)
    assert slim.fingerprint == plain.fingerprint
    alone = both.only(next(name for name in kept if found.get(name).units == 5))
    slim, plain = refit(found, alone, batches), apply(found.program, alone, found)
    assert distance(slim, found.program, batches) < distance(plain, found.program, batches)


def test_a_plan_that_does_not_fit_is_refused() -> None:
    found = sites("bert")
    plan = Plan(found.program.fingerprint, {"bert.encoder.layer.0.heads": (0, 7)})
    with pytest.raises(InputError, match="from 0 to 3"):
        refit(found, plan, batches_of("bert"))
    with pytest.raises(InputError, match="fingerprint"):
        refit(found, Plan("another"), batches_of("bert"))


class SideBySide(nn.Module):
    """A matrix that reads two sites side by side, one of which another matrix reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 5)
        self.both, self.other = nn.Linear(9, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x).relu(), self.second(x).relu()
        return self.both(torch.cat([first, second], dim=-1)) + self.other(first).tanh()


def test_a_matrix_that_loses_rows_as_well_is_refitted_to_what_stays() -> None:
    class Deep(nn.Module):
        """Two hidden layers in one branch."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.three = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.three(self.two(self.one(x).relu()).relu())

    deep = Deep().eval()
    deep.two.weight.requires_grad_(False)
    batches = [(torch.randn(64, 6),)]
    found = find_sites(capture(deep, batches[0]))
    kept = {s.name: tuple(range(0, s.units, 2)) for s in found.cuttable if s.kind == "width"}
    assert len(kept) == 2
    plan = Plan(found.program.fingerprint, kept)
    slim, plain = refit(found, plan, batches), apply(found.program, plan, found)
    assert distance(slim, found.program, batches) < distance(plain, found.program, batches)
    assert tuple(slim.tensors["two.weight"].shape) == (6, 8)
    assert not slim.tensors["two.weight"].requires_grad


class Twins(nn.Module):
    """Convolutions of every kind whose second half of channels repeats the first."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, bias=not norm)
        self.third = nn.Conv2d(12, 10, 1, bias=False)
        self.fourth = nn.Conv1d(10, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.head = nn.Linear(8, 3)
        for layer in (self.first, self.second, self.third, self.fourth):
            half = len(layer.weight) // 2
            with torch.no_grad():
                layer.weight[half:] = layer.weight[:half]
                if layer.bias is not None:
                    layer.bias[half:] = layer.bias[:half]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu())).relu()
        x = self.fourth(self.third(x).sigmoid().flatten(2)).relu()
        return self.head(x.mean(2))


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_channels_that_others_can_stand_for_are_made_up_for_exactly(norm: bool) -> None:
    batches: list[Batch] = [(noise(32, 2, 8, 8, seed=seed),) for seed in (1, 2)]
    found = find_sites(capture(Twins(norm).eval(), (noise(3, 2, 8, 8, seed=0),)))
    kept = {s.name: tuple(range(s.units // 2)) for s in found.cuttable if s.kind == "width"}
    assert len(kept) == 4
    assert all(reader_of(found, name) is not None for name in kept)
    plan = Plan(found.program.fingerprint, kept)
    slim, plain = refit(found, plan, batches), apply(found.program, plan, found)
    for batch in batches:
        wanted = found.program(*batch)
        # The ridge takes 1e-4 of what the twin carried.
        torch.testing.assert_close(slim(*batch), wanted, rtol=0, atol=1e-3)
        assert float((plain(*batch) - wanted).abs().max()) > 0.02


def test_too_few_rows_leave_the_weights_that_stay_as_they_were() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    found = find_sites(capture(net, (noise(3, 6, seed=0),)))
    (site,) = (s for s in found.cuttable if s.units == 16)
    plan = Plan(found.program.fingerprint, {site.name: tuple(range(0, 16, 2))})
    plain = apply(found.program, plan, found)
    few, enough = (refit(found, plan, [(noise(rows, 6, seed=1),)]) for rows in (31, 32))
    assert few.fingerprint == plain.fingerprint
    assert enough.fingerprint != plain.fingerprint


@torch.no_grad()
def test_a_convolution_is_refitted_to_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
    x = noise(64, 2, 8, 8, seed=1)
    found = find_sites(capture(net, (x[:3],)))
    (site,) = (s for s in found.cuttable if s.units == 6)
    slim = refit(found, Plan(found.program.fingerprint, {site.name: (0, 3, 5)}), [(x,)])
    read = net[:2](x)[:, [0, 3, 5]]
    rows = torch.nn.functional.unfold(read, 3).movedim(2, 1).flatten(0, 1).double()
    wanted = net[:3](x).flatten(2).movedim(2, 1).flatten(0, 1).double()
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    least = float((rows @ torch.linalg.lstsq(rows, wanted).solution - wanted).square().sum())
    error = float((slim(x) - net(x)).double().square().sum())
    assert least <= error < 1.01 * least


def test_a_grouped_convolution_is_no_reader() -> None:
    net = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten())
    found = find_sites(capture(net, (noise(3, 2, 5, 5, seed=0),)))
    assert found.atoms["channels"].size == 3  # of each group
    assert reader_of(found, "channels") is None
