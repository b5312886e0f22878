"""Pieces compute what the sub-layers inside the program compute, at any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.program.graph import ancestors, evaluate
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import masked
from edgeprune.surgery.pieces import chain, token_dim
from edgeprune.tasks.digits_vit import VisionTransformer

LLAMA = LlamaConfig(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=50,
)


class LastToken(nn.Module):
    """A decoder's last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LlamaModel(LLAMA)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden[:, -1]


class Windows(nn.Module):
    """Four windows of four tokens: mixed inside a sub-layer, and around one, next to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up, self.down = nn.Linear(48, 48), nn.Linear(48, 64), nn.Linear(64, 48)
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = self.norm1(x).view(x.shape[0] * 4, 4, 48)
        x = x + self.mix(windows.softmax(1) * windows).view(x.shape[0], 16, 48)
        y = x.view(x.shape[0] * 4, 4, 48)
        y = y + self.down(self.up(self.norm2(y)).relu())
        return y.view(x.shape[0], 16, 48)


def vit() -> Program:
    torch.manual_seed(0)
    return capture(VisionTransformer(depth=2).eval(), (torch.rand(2, 1, 8, 8),))


def llama() -> Program:
    torch.manual_seed(0)
    return capture(LastToken().eval(), (torch.randint(0, 50, (2, 12)),))


def windows() -> Program:
    torch.manual_seed(0)
    return capture(Windows().eval(), (torch.randn(2, 16, 48),))


@pytest.fixture(scope="module", params=[vit, llama], ids=["vit", "llama"])
def sites(request: pytest.FixtureRequest) -> Sites:
    return find_sites(request.param())


def inside(program: Program, node: torch.fx.Node) -> torch.Tensor:
    """What the program computes at a node, for its first example."""
    inputs = [n for n in program.module.graph.nodes if n.op == "placeholder"]
    given = dict(zip(inputs, (each[:1] for each in program.example_inputs), strict=True))
    found: torch.Tensor = evaluate(program.module, node, given, ancestors(node))
    return found


@pytest.mark.parametrize("sites", [vit, llama, windows], indirect=True)
def test_a_whole_piece_computes_what_the_sub_layer_does_inside_the_program(sites: Sites) -> None:
    for residual in sites.residuals:
        size = token_dim(sites, residual)
        assert size is not None
        found = chain(sites, [residual], {}, size.size)
        values = [inside(sites.program, node) for node in found.sources]
        assert [v.shape for v in values] == [v.shape for v in found.inputs]
        torch.testing.assert_close(found.module(*values), inside(sites.program, residual.add))


def test_a_cut_piece_equals_the_masked_sub_layer(sites: Sites) -> None:
    for site in (s for s in sites.cuttable if s.axis in ("heads", "kv_groups", "ffn")):
        residual = next(
            r for r in sites.residuals if {path for path, _ in site.weights} <= set(r.weights)
        )
        plan = Plan(sites.program.fingerprint, {site.name: tuple(range(site.units // 2))})
        program = masked(sites, plan)
        add = next(n for n in program.module.graph.nodes if n.name == residual.add.name)
        size = token_dim(sites, residual)
        assert size is not None
        found = chain(sites, [residual], {site.name: site.units // 2}, size.size)
        values = [
            inside(program, next(n for n in program.module.graph.nodes if n.name == source.name))
            for source in found.sources
        ]
        torch.testing.assert_close(found.module(*values), inside(program, add))


def test_a_chain_runs_its_sub_layers_one_after_the_other(sites: Sites) -> None:
    residuals = [r for r in sites.residuals if r.name.endswith("ffn")]
    found = chain(sites, residuals, {}, 5)
    stream = found.inputs[0]
    for residual in residuals:
        stream = chain(sites, [residual], {}, 5).module(stream)
    torch.testing.assert_close(found.module(*found.inputs), stream)


@pytest.mark.parametrize("tokens", [1, 5, 7])
def test_a_piece_can_have_any_number_of_tokens(sites: Sites, tokens: int) -> None:
    for residual in sites.residuals:
        found = chain(sites, [residual], {}, tokens)
        assert found.module(*found.inputs).shape == (1, tokens, 48)


def test_a_removed_piece_without_closing_norms_hands_the_stream_on(sites: Sites) -> None:
    residual = sites.residuals[0]
    assert not residual.closing_norms
    found = chain(sites, [residual], {}, 5, removed=True)
    assert torch.equal(found.module(*found.inputs), found.inputs[0])
