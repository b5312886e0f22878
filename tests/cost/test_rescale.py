"""A table of one device, rescaled to another by a dozen whole models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cost_models import encoder

from edgeprune.cost import CostTable, estimate_costs, random_plan
from edgeprune.cost.plans import RESCALING_SHARES, anchor_plans
from edgeprune.cost.rescale import check_made_for, rescaled
from edgeprune.cost.samples import Sample, Samples
from edgeprune.errors import InputError
from edgeprune.lower import Lowering
from edgeprune.plan import Plan
from edgeprune.profile import load_profile
from edgeprune.sites import Sites, find_sites

LOWERING = Lowering("int8")


@pytest.fixture(scope="module")
def sites() -> Sites:
    return find_sites(encoder())


@pytest.fixture(scope="module")
def table(sites: Sites) -> CostTable:
    """Of a made-up device, with a constant part as a measured one has."""
    found = estimate_costs(sites, load_profile("pixel8"), LOWERING)
    return replace(found, fixed_ms=0.2 * found.dense_ms, device="adb: Pixel 8")


def sister(table: CostTable) -> CostTable:
    """Three times as slow, but twice in attention, and five times in what is left over."""
    attention, ffn = table.blocks
    by = {2.0: attention, 3.0: ffn}
    return replace(
        table,
        blocks=tuple(
            replace(
                block,
                ms=replace(
                    block.ms,
                    by_units=tuple((x, factor * y) for x, y in block.ms.by_units),
                    by_tokens=tuple((x, factor * y) for x, y in block.ms.by_tokens),
                    inside=tuple((u, t, factor * y) for u, t, y in block.ms.inside),
                ),
                removed_ms=tuple((x, factor * y) for x, y in block.removed_ms),
            )
            for factor, block in by.items()
        ),
        fixed_ms=5.0 * table.fixed_ms,
    )


def measured(sites: Sites, truth: CostTable, plans: dict[str, Plan], noise: float) -> Samples:
    rng = np.random.default_rng(0)
    ms = {name: truth.predict(sites, plan).latency_ms for name, plan in plans.items()}
    return {
        name: Sample(
            (each * (1 + noise * rng.standard_normal()),) * 5,
            (ms["dense"],) * 5,
            2**20,
            2**18,
            3.0,
            "2026-01-01T00:00:00Z",
        )
        for name, each in ms.items()
    }


def worst_off_pct(sites: Sites, table: CostTable, truth: CostTable) -> float:
    rng = np.random.default_rng(1)
    plans = [random_plan(sites, rng, rng.uniform(0.2, 1.0)) for _ in range(30)]
    return max(
        100 * abs(table.predict(sites, plan).latency_ms / truth.predict(sites, plan).latency_ms - 1)
        for plan in plans
    )


def test_a_dozen_whole_models_find_the_factor_of_every_part(sites: Sites, table: CostTable) -> None:
    plans = anchor_plans(sites, 0, RESCALING_SHARES)
    assert len(plans) == 12
    truth = sister(table)
    found = rescaled(table, sites, plans, measured(sites, truth, plans, noise=0.0))
    common = replace(
        table,
        scale=3.0 * table.scale,
        fixed_ms=3.0 * table.fixed_ms,
    )
    assert worst_off_pct(sites, found, truth) < 5.0 < worst_off_pct(sites, common, truth)
    assert found.error_pct["rescaled_worst"] < 5.0
    assert (found.provenance, found.source[:12]) == ("rescaled", "adb: Pixel 8")


def test_the_stated_error_grows_with_the_noise(sites: Sites, table: CostTable) -> None:
    plans = anchor_plans(sites, 0, RESCALING_SHARES)
    quiet, noisy = (
        rescaled(table, sites, plans, measured(sites, sister(table), plans, noise))
        for noise in (0.0, 0.1)
    )
    assert noisy.error_pct["rescaled_mean"] > 4.0 > quiet.error_pct["rescaled_mean"]


def test_the_same_plans_serve_a_table_that_is_measured_later(sites: Sites) -> None:
    few, many = anchor_plans(sites, 0), anchor_plans(sites, 0, RESCALING_SHARES)
    assert list(many)[: len(few)] == list(few)


def test_a_table_of_another_model_or_precision_is_refused(sites: Sites, table: CostTable) -> None:
    check_made_for(table, sites, LOWERING)
    with pytest.raises(InputError, match="precision is int8, this build's is fp32"):
        check_made_for(table, sites, Lowering("fp32"))
    deeper = find_sites(encoder(layers=4))
    with pytest.raises(InputError, match=r"made for another model: 'layers\.3"):
        check_made_for(table, deeper, LOWERING)
