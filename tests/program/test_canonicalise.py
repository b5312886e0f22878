"""Canonical form: other ways of writing the same become the one that all else reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import noise, relative_error
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.program.canonicalise import canonicalise
from edgeprune.program.graph import ATEN, MASKED, calls, op_name
from edgeprune.sites import find_sites
from edgeprune.surgery import apply, masked

WIDTH, HEADS, TOKENS = 8, 2, 5


def operators(program: Program) -> list[str]:
    return [op_name(node) for node in program.module.graph.nodes if node.op == "call_function"]


class Products(nn.Module):
    """Two products with weights stored [in, out]; the second weight is also read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(noise(WIDTH, 12, seed=1))
        self.second = nn.Parameter(noise(12, WIDTH, seed=2))
        self.bias = nn.Parameter(noise(12, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.addmm(self.bias, x.view(-1, WIDTH), self.first).view(*x.shape[:-1], 12)
        rows = torch.addmm(self.second[0], hidden.relu().view(-1, 12), self.second)
        return rows.view(x.shape)


def test_a_product_with_a_stored_matrix_becomes_a_linear_layer() -> None:
    model = Products().eval()
    program = capture(model, (noise(3, TOKENS, WIDTH, seed=0),))
    found = operators(program)
    assert found.count("aten.linear.default") == 1
    assert found.count("aten.addmm.default") == 1  # its weight has another reader
    weight = program.tensors["first"]
    assert torch.equal(weight, model.first.t())
    assert isinstance(weight, nn.Parameter)
    assert find_sites(program).get("neurons").axis == "ffn"


class Parallel(nn.Module):
    """Two branches that read the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.ups = nn.ModuleList([nn.Linear(WIDTH, 12) for _ in range(2)])
        self.downs = nn.ModuleList([nn.Linear(12, WIDTH) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        parts = [self.downs[i](self.ups[i](self.norms[i](x)).relu()) for i in range(2)]
        return parts[0] + parts[1] + x


def test_branches_beside_each_other_can_be_removed_alone() -> None:
    model, given = Parallel().eval(), noise(3, TOKENS, WIDTH, seed=0)
    found = find_sites(capture(model, (given,)))
    assert [r.name for r in found.residuals] == ["ffn", "ffn_2"]
    for number, residual in enumerate(found.residuals):
        slim = apply(found.program, Plan(found.program.fingerprint, {residual.name: ()}), found)
        other = 1 - number
        x = given.sin()
        wanted = x + model.downs[other](model.ups[other](model.norms[other](x)).relu())
        assert relative_error(slim(given), wanted) <= 1e-5


class SharedBias(nn.Module):
    """Two attentions under one bias table and one padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkvs = nn.ModuleList([nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2)])
        self.outs = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.table = nn.Embedding(2 * TOKENS, HEADS)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        places = torch.arange(TOKENS)
        bias = self.table(places[:, None] - places[None] + TOKENS).permute(2, 0, 1)[None]
        mask = torch.where(real[:, None, None].bool(), bias, torch.finfo(x.dtype).min)
        for qkv, out in zip(self.qkvs, self.outs, strict=True):
            q, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in qkv(x).chunk(3, -1))
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + out(mixed.transpose(1, 2).flatten(2))
        return x[:, 0]


def shared_bias() -> tuple[SharedBias, Program]:
    real = (torch.arange(TOKENS)[None] < torch.tensor([[5], [3], [1]])).long()
    model = SharedBias().eval()
    return model, capture(model, (noise(3, TOKENS, WIDTH, seed=0), real))


def test_layers_under_one_bias_have_heads_of_their_own_and_one_copy_of_it() -> None:
    _, program = shared_bias()
    tables = [t for t in program.tensors.values() if t.shape == (1, HEADS, TOKENS, TOKENS)]
    assert len(tables) == 2
    assert len({table.data_ptr() for table in tables}) == 1
    once = sum(t.numel() for t in program.tensors.values()) - tables[0].numel()
    assert program.size_bytes == 4 * once
    found = find_sites(program)
    heads = [site for site in found.cuttable if site.axis == "heads"]
    assert len(heads) == 2
    slim = apply(program, Plan(program.fingerprint, {heads[1].name: (1,)}), found)
    left = [t.shape[1] for t in slim.tensors.values() if t.shape[2:] == (TOKENS, TOKENS)]
    assert sorted(left) == [1, HEADS]


def test_a_mask_that_fills_becomes_a_finite_sum() -> None:
    model, program = shared_bias()
    for attention in calls(program.module.graph, ATEN.scaled_dot_product_attention):
        mask = attention.args[3]
        assert op_name(mask) == "aten.add.Tensor"
    floats = [t for t in program.tensors.values() if t.is_floating_point()]
    assert min(float(t.min()) for t in floats) >= MASKED
    assert "aten.where.ScalarOther" not in operators(program)


def test_canonical_form_is_reached_once() -> None:
    joined = capture(JoinedWithBatch(), (noise(2, TOKENS, WIDTH, seed=0),))
    parallel = capture(Parallel(), (noise(2, 3, WIDTH, seed=0),))
    for program in (shared_bias()[1], parallel, joined):
        before = program.fingerprint
        canonicalise(program.module, program.example_inputs)
        assert (
            type(program)(
                program.module, program.example_inputs, program.input_names, program.output_names
            ).fingerprint
            == before
        )


class SizedByBatch(nn.Module):
    """A table that only depends on the batch's size where it is expanded at last."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.arange(TOKENS).float().log1p()
        return x + table.expand(x.shape[0], TOKENS).flip(0)


def test_what_is_constant_behind_something_sized_by_the_batch_is_folded() -> None:
    program = capture(SizedByBatch(), (noise(3, TOKENS, seed=0),))
    assert not {"aten.arange.default", "aten.log1p.default"} & set(operators(program))


class Repeated(nn.Module):
    """Attention over two groups of keys, each repeated for its two query heads."""

    def __init__(self, repeat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.repeat = repeat
        self.query, self.out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            matrix(x).unflatten(-1, (-1, 4)).transpose(1, 2)
            for matrix in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v))
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "repeat",
    [
        lambda x: x.repeat_interleave(2, dim=1),
        lambda x: torch.repeat_interleave(x, 2, -3),
        lambda x: x[:, torch.tensor([0, 0, 1, 1])],
        lambda x: x.index_select(1, torch.arange(2).repeat_interleave(2)),
    ],
)
def test_repeated_keys_are_groups_with_their_queries(repeat: Callable[[Tensor], Tensor]) -> None:
    program = capture(Repeated(repeat).double().eval(), (noise(3, TOKENS, WIDTH, seed=0).double(),))
    found = find_sites(program)
    axes = {site.name: site.units for site in found.cuttable}
    assert axes["kv_groups"] == 2 and axes["queries_per_group"] == 2
    for plan in ({"kv_groups": (1,)}, {"queries_per_group": (0,)}):
        cut = Plan(program.fingerprint, plan)
        slim, gated = apply(program, cut, found), masked(found, cut)
        assert torch.allclose(slim(*program.example_inputs), gated(*program.example_inputs))


def test_entries_taken_in_another_order_are_no_repeats() -> None:
    model = Repeated(lambda x: x[:, torch.tensor([0, 1, 0, 1])]).eval()
    found = find_sites(capture(model, (noise(3, TOKENS, WIDTH, seed=0),)))
    assert not {"kv_groups", "queries_per_group"} & {site.name for site in found.cuttable}


class JoinedWithBatch(nn.Module):
    """Attention over [batch x heads, T, d] whose tables are repeated for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.far = nn.Parameter(noise(HEADS, TOKENS, WIDTH // HEADS, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(2, (HEADS, -1)).transpose(1, 2).flatten(0, 1)
            for each in self.up(x).chunk(3, -1)
        )
        q = q + k[:, :1].expand(k.shape[0], TOKENS, -1)
        near = torch.arange(TOKENS).sub(torch.arange(TOKENS)[:, None]).abs()
        far = torch.bmm(q, self.far.repeat(x.shape[0], 1, 1).mT)
        scores = torch.bmm(q, k.mT) + far.gather(-1, near[None].expand(q.shape[0], -1, -1))
        mixed = torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, HEADS))
        return self.down(mixed.transpose(1, 2).flatten(2))


def test_heads_joined_with_the_batch_are_cut_with_the_tables_repeated_for_it() -> None:
    program = capture(
        JoinedWithBatch().double().eval(), (noise(3, TOKENS, WIDTH, seed=0).double(),)
    )
    found = find_sites(program)
    (heads,) = (site for site in found.cuttable if ("far", 0) in site.weights)
    plan = Plan(program.fingerprint, {heads.name: (1,)})
    slim, gated = apply(program, plan, found), masked(found, plan)
    given = noise(5, TOKENS, WIDTH, seed=2).double()
    assert torch.allclose(slim(given), gated(given), atol=1e-12)
    assert slim.tensors["far"].shape == (1, TOKENS, WIDTH // HEADS)
