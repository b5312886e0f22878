"""Prices of widths that span several parts."""

from __future__ import annotations

import numpy as np
import pytest
from convnets import Keyword, Staged, captured, pictures, same
from models import sites as known_sites

from edgeprune.cost import CostTable, estimate_costs, random_plan
from edgeprune.cost.blocks import block_point, copies_of, find_blocks, piece_of, sizes_of, spans_of
from edgeprune.cost.fit import fit_table
from edgeprune.cost.plans import anchor_plans
from edgeprune.cost.rescale import check_made_for
from edgeprune.cost.samples import Sample, Samples
from edgeprune.errors import InputError
from edgeprune.importance.evidence import values_at
from edgeprune.lower import Lowering
from edgeprune.plan import Plan
from edgeprune.profile import Profile, load_profile
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply
from edgeprune.surgery.pieces import chunk

KINDS = (Keyword, Staged)


@pytest.fixture(scope="module", params=KINDS)
def found(request: pytest.FixtureRequest) -> Sites:
    return find_sites(captured(request.param))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("pixel8")


def test_a_chunk_computes_what_the_cut_program_does(found: Sites) -> None:
    part = next(part for part in found.parts if part.residual is None and len(part.spanning) == 2)
    sizes = {name: found.get(name).units // 2 for name in part.spanning}
    piece = chunk(found, part, sizes)
    units = {name: tuple(range(kept)) for name, kept in sizes.items()}
    slim = apply(found.program, Plan(found.program.fingerprint, units), found)
    nodes = {node.name: node for node in slim.module.graph.nodes}
    batch = (pictures(1, seed=3),)
    come = values_at(slim.module, [nodes[node.name] for node in piece.sources], batch)
    (result,) = values_at(slim.module, [nodes[part.boundary()[1][0].name]], batch)
    assert same(piece.module(*come), result)


def test_a_plan_costs_what_an_estimate_of_the_cut_program_says(
    found: Sites, profile: Profile
) -> None:
    table = estimate_costs(found, profile, Lowering("fp32"))
    for seed in range(4):
        plan = random_plan(found, np.random.default_rng(seed), 0.6)
        assert any(units for units in plan.kept.values())
        cut = find_sites(apply(found.program, plan, found))
        wanted = estimate_costs(cut, profile, Lowering("fp32"))
        got = table.predict(found, plan)
        assert got.latency_ms == pytest.approx(wanted.dense_ms, rel=0.03)
        whole = sum(t.numel() * t.element_size() for t in cut.program.tensors.values())
        assert got.size_mb == pytest.approx(whole / 2**20, rel=0.15)


def test_every_width_that_concatenations_carry_is_priced() -> None:
    found = known_sites("densely_connected")
    table = estimate_costs(found, load_profile("pixel8"), Lowering("fp32"))
    dense = table.predict(found, Plan(found.program.fingerprint))
    for name in {name for part in found.parts for name in part.spanning}:
        less = table.predict(found, Plan(found.program.fingerprint, {name: (0,)}))
        assert less.latency_ms < dense.latency_ms and less.size_mb < dense.size_mb


def samples_of(found: Sites, table: CostTable) -> Samples:
    """What a device would measure that works as the table says, with an overhead per file."""
    ms: dict[str, float] = {}
    for block in find_blocks(found):
        copies = copies_of(block)
        sizes = [*((size, None) for size in sizes_of(block))]
        sizes += [((block.units, block.tokens), span) for span in spans_of(found, block)]
        for (units, tokens), span in sizes:
            one = table.block_ms(block.name, units, tokens)
            if span is not None:
                one *= float(table.shares(block.parts[0])[span[0]].at(span[1])[0])
            ms[block_point(block, copies, units, tokens, span)] = copies * one
            ms[block_point(block, 1, units, tokens, span)] = one
    for name, plan in anchor_plans(found, 0).items():
        ms[name] = table.predict(found, plan).latency_ms
    return {
        name: Sample((took,) * 3, (table.dense_ms,) * 3, 1000, 1000, 1.0, "2026-01-01T00:00:00Z")
        for name, took in ms.items()
    }


def test_a_measured_table_finds_the_shares_again(found: Sites, profile: Profile) -> None:
    true = estimate_costs(found, profile, Lowering("fp32"))
    plans = anchor_plans(found, 0)
    fitted = fit_table(found, find_blocks(found), plans, samples_of(found, true), Lowering("fp32"))
    for seed in range(10):
        plan = random_plan(found, np.random.default_rng(seed), 0.5)
        wanted = true.predict(found, plan).latency_ms
        assert fitted.predict(found, plan).latency_ms == pytest.approx(wanted, rel=0.02)
    assert CostTable.from_json(fitted.to_json()) == fitted


def test_a_spanning_cut_makes_every_member_of_a_chain_smaller() -> None:
    found = find_sites(captured(Staged))
    block = next(block for block in find_blocks(found) if block.residuals)
    whole, half = (piece_of(found, block, 1, 16, 1, span) for span in (None, (0, 8)))
    assert whole.inputs[0].shape[1] == 16 and half.inputs[0].shape[1] == 8
    assert half.module(*half.inputs).shape[1] == 8


def test_a_table_of_other_spanning_widths_is_refused(profile: Profile) -> None:
    narrow, wide = (find_sites(captured(kind)) for kind in KINDS)
    table = estimate_costs(narrow, profile, Lowering("fp32"))
    with pytest.raises(InputError, match=r"made for another model: 'blocks\.0\..*' has nothing"):
        check_made_for(table, wide, Lowering("fp32"))
