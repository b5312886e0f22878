"""What a cost table says follows from its samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cost_models import HEADS, NEURONS, TOKENS, encoder
from models import program
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel

from edgeprune.cost import CostTable, estimate_costs, random_plan
from edgeprune.cost.blocks import Block, block_point, copies_of, find_blocks, sizes_of
from edgeprune.cost.fit import fit_table
from edgeprune.cost.plans import anchor_plans, selection_plans
from edgeprune.cost.samples import Sample, Samples
from edgeprune.cost.table import Grid, walk
from edgeprune.errors import InputError
from edgeprune.lower import Lowering
from edgeprune.plan import Plan, check_plan
from edgeprune.profile import load_profile
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites

DENSE_MS = 2.0
OVERHEAD_MS = 0.03
ATTENTION, FFN = "layers.1.attention", "layers.1.ffn"


@pytest.fixture(scope="module")
def sites() -> Sites:
    return find_sites(encoder())


@pytest.fixture(scope="module")
def estimated(sites: Sites) -> CostTable:
    return estimate_costs(sites, load_profile("pixel8"), Lowering("int8"))


def true_ms(block: Block, units: float, tokens: int) -> float:
    """A made-up device: linear in units, with a quadratic part in tokens for attention."""
    if not units:
        return 0.002 * tokens / TOKENS
    share, long = units / block.units, tokens / TOKENS
    square = 0.05 * long * long if "attention" in block.name else 0.0
    return 0.01 + share * (0.2 * long + square)


def made_up_samples(sites: Sites) -> Samples:
    """What the made-up device would measure, without noise."""
    blocks = find_blocks(sites)
    of = {residual.name: block for block in blocks for residual in block.residuals}

    def whole_ms(plan: Plan) -> float:
        steps = walk(plan, sites)
        pieces = sum(true_ms(of[r.name], units, tokens) for r, units, tokens, _ in steps)
        return 0.5 + pieces + sum(0.04 for _, _, tokens, keep in steps if keep < tokens)

    ms: dict[str, float] = {}
    for block in blocks:
        sizes = sizes_of(block) + [(0, tokens) for _, tokens in sizes_of(block)]
        for units, tokens in sizes:
            for copies in (1, copies_of(block)):
                name = block_point(block, copies, units, tokens)
                ms[name] = OVERHEAD_MS + copies * true_ms(block, units, tokens)
    for name, plan in (selection_plans(sites) | anchor_plans(sites, 0)).items():
        ms[name] = whole_ms(plan)
    dense = ms["dense"]
    return {
        name: Sample((each,) * 5, (dense,) * 5, 2**20, 2**18, 3.0, "2026-01-01T00:00:00Z")
        for name, each in ms.items()
    }


@pytest.fixture(scope="module")
def fitted(sites: Sites) -> CostTable:
    samples = made_up_samples(sites)
    return fit_table(sites, find_blocks(sites), anchor_plans(sites, 0), samples, Lowering("int8"))


def test_alike_sub_layers_are_one_block(sites: Sites) -> None:
    members = [[residual.name for residual in block.residuals] for block in find_blocks(sites)]
    assert members == [
        ["layers.0.attention", "layers.1.attention", "layers.2.attention"],
        ["layers.0.ffn", "layers.1.ffn", "layers.2.ffn"],
    ]


def test_the_table_predicts_its_own_samples_exactly(sites: Sites, fitted: CostTable) -> None:
    for block in find_blocks(sites):
        for units, tokens in sizes_of(block):
            found = fitted.block_ms(block.name, units, tokens) / fitted.scale
            assert found == pytest.approx(true_ms(block, units, tokens), rel=1e-6)


def test_scale_constant_and_selections_are_found_back(sites: Sites, fitted: CostTable) -> None:
    assert fitted.scale == pytest.approx(1.0, abs=0.01)
    assert fitted.fixed_ms == pytest.approx(0.5, abs=0.01)
    for before, keep in ((16, 8), (16, 2), (8, 4)):
        assert fitted.transition_ms(before, keep) == pytest.approx(0.04, abs=0.01)
    assert fitted.transition_ms(8, 8) == 0.0


def test_whole_plans_that_it_was_not_fitted_to_are_predicted(
    sites: Sites, fitted: CostTable
) -> None:
    rng = np.random.default_rng(7)
    of = {residual.name: block for block in find_blocks(sites) for residual in block.residuals}
    for _ in range(20):
        plan = random_plan(sites, rng, rng.uniform())
        steps = walk(plan, sites)
        true = 0.5 + sum(true_ms(of[r.name], u, t) + 0.04 * (k < t) for r, u, t, k in steps)
        assert fitted.predict(sites, plan).latency_ms == pytest.approx(true, rel=0.03)


def test_more_units_and_more_tokens_never_cost_less(estimated: CostTable) -> None:
    for name, most in ((ATTENTION, HEADS), (FFN, NEURONS)):
        by_units = [estimated.block_ms(name, units, 10) for units in range(most + 1)]
        by_tokens = [estimated.block_ms(name, most // 2, tokens) for tokens in range(1, TOKENS + 1)]
        assert by_units == sorted(by_units) and by_tokens == sorted(by_tokens)


def test_a_grid_is_exact_at_samples_inside_and_between_its_lines() -> None:
    grid = Grid(((2, 3.0), (4, 5.0)), ((8, 1.0), (16, 5.0)), ((2, 8, 0.5),))
    assert [grid.at(4, 16), grid.at(2, 16), grid.at(4, 8), grid.at(2, 8)] == [5.0, 3.0, 1.0, 0.5]
    assert grid.at(3, 16) == 4.0
    assert 0.5 < grid.at(3, 12) < 5.0


def test_a_removed_sub_layer_costs_its_closing_norm_and_a_removed_layer_nothing(
    sites: Sites, fitted: CostTable
) -> None:
    fingerprint = sites.program.fingerprint
    whole = fitted.predict(sites, Plan(fingerprint)).latency_ms
    pair = Plan(fingerprint, {ATTENTION: (), FFN: ()})
    layer = Plan(fingerprint, {"layers.1": ()})
    full = fitted.block_ms(ATTENTION, HEADS, TOKENS) + fitted.block_ms(FFN, NEURONS, TOKENS)
    assert fitted.predict(sites, layer).latency_ms == pytest.approx(whole - full)
    norms = fitted.block_ms(ATTENTION, 0, TOKENS) + fitted.block_ms(FFN, 0, TOKENS)
    assert norms > 0
    assert fitted.predict(sites, pair).latency_ms == pytest.approx(whole - full + norms)


def test_memory_is_the_file_and_the_largest_block(sites: Sites, fitted: CostTable) -> None:
    plan = Plan(sites.program.fingerprint, {"layers.0.neurons": tuple(range(16))})
    found = fitted.predict(sites, plan)
    steps = walk(plan, sites)
    weights = sum(fitted.block_weight_mb(r.name, units) for r, units, _, _ in steps)
    assert found.size_mb == pytest.approx(fitted.fixed_weight_mb + weights)
    largest = max(fitted.block_activation_mb(r.name, u, t) for r, u, t, _ in steps)
    assert found.peak_memory_mb == pytest.approx(found.size_mb + largest)
    dense = fitted.predict(sites, Plan(sites.program.fingerprint))
    # 48 of 64 neurons less: rows of one matrix with bias and scale, columns of the other.
    gone = 48 * (32 + 32 + 4 + 4) / 2**20
    assert dense.size_mb - found.size_mb == pytest.approx(gone, rel=0.05)


def test_memory_of_the_anchors_is_found_back(sites: Sites, fitted: CostTable) -> None:
    dense = fitted.predict(sites, Plan(sites.program.fingerprint))
    assert dense.peak_memory_mb == pytest.approx(3.0, abs=0.1)


def test_memory_of_mapped_files_is_found_back(sites: Sites, fitted: CostTable) -> None:
    samples, plans = made_up_samples(sites), anchor_plans(sites, 0)
    sizes = {name: fitted.predict(sites, plan).size_mb for name, plan in plans.items()}
    peaks = {name: 2 * (size - 0.7 * min(sizes.values())) for name, size in sizes.items()}
    for name, size in sizes.items():
        file = {"size_bytes": int(size * 2**20), "peak_memory_mb": peaks[name]}
        samples[name] = replace(samples[name], **file)
    table = fit_table(sites, find_blocks(sites), plans, samples, Lowering("int8", "litert"))
    assert table.resident > 1 and table.unread_mb > 0
    for name, plan in plans.items():
        found = table.predict(sites, plan).peak_memory_mb
        assert found == pytest.approx(peaks[name], abs=0.1 * max(peaks.values()))


def test_an_estimate_is_labelled_one(estimated: CostTable, fitted: CostTable) -> None:
    assert (estimated.provenance, fitted.provenance) == ("estimated", "measured")


def test_a_faster_device_is_estimated_to_be_faster(sites: Sites, estimated: CostTable) -> None:
    slow = estimate_costs(sites, load_profile("raspberrypi4"), Lowering("int8"))
    assert slow.dense_ms > estimated.dense_ms > 0


def test_a_table_survives_its_file(estimated: CostTable, tmp_path: Path) -> None:
    again = CostTable.read(estimated.write(tmp_path / "table.json"))
    assert again == estimated and again.hash == estimated.hash
    assert again.block_ms(FFN, 20, 11) == estimated.block_ms(FFN, 20, 11)


def test_a_table_cut_short_is_refused(estimated: CostTable) -> None:
    body = estimated.to_json()
    del body["blocks"]
    with pytest.raises(InputError, match="not a complete table"):
        CostTable.from_json(body)


def test_another_models_sub_layer_is_refused(estimated: CostTable) -> None:
    with pytest.raises(InputError, match=r"no sub-layer 'h\.0\.attention'"):
        estimated.block_ms("h.0.attention", 1, 8)


def test_random_plans_are_valid_repeatable_and_over_all_axes(sites: Sites) -> None:
    plans = [random_plan(sites, np.random.default_rng(seed), 0.5) for seed in range(30)]
    for plan in plans:
        check_plan(plan, sites)
    assert plans[3] == random_plan(sites, np.random.default_rng(3), 0.5)
    assert any(plan.tokens for plan in plans)
    assert any(not units for plan in plans for units in plan.kept.values())
    assert any(units for plan in plans for units in plan.kept.values())


def test_random_plans_of_a_convolutional_net_have_a_price() -> None:
    found = find_sites(program("convolutional"))
    table = estimate_costs(found, load_profile("pixel8"), Lowering("int8"))
    plans = [random_plan(found, np.random.default_rng(seed), 0.5) for seed in range(20)]
    assert any(plan.kept for plan in plans)
    for plan in plans:
        assert table.predict(found, plan).latency_ms > 0


def test_weights_that_layers_share_stay_until_the_last_of_them_goes() -> None:
    class Albert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = AlbertConfig(
                hidden_size=32,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=64,
                vocab_size=50,
                embedding_size=16,
            )
            self.albert = AlbertModel(config, add_pooling_layer=False)

        def forward(self, words: Tensor) -> Tensor:
            return self.albert(input_ids=words).last_hidden_state.mean(1)

    shared = find_sites(capture(Albert().eval(), (torch.randint(0, 50, (2, 8)),)))
    assert len(shared.residuals) == 8
    table = estimate_costs(shared, load_profile("pixel8"), Lowering())
    whole = sum(t.numel() * 4 for t in shared.program.tensors.values()) / 2**20
    assert table.fixed_weight_mb > 0
    for removed in ({}, {shared.residuals[2].name: ()}):
        plan = Plan(shared.program.fingerprint, removed)
        assert table.predict(shared, plan).size_mb == pytest.approx(whole)
