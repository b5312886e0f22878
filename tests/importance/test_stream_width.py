"""The residual stream's width as a site like any other: ranked, and its damage measured."""

from __future__ import annotations

import pytest
import torch
from axis_models import given, sites
from models import WIDTH

from edgeprune.formulate import choices_of
from edgeprune.importance import CRITERIA, Evidence, measure_damage, rank_units
from edgeprune.profile import Multiples


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_orders_the_stream_of_a_classifier(name: str) -> None:
    evidence = Evidence(sites("bert"), [given("bert", 4, 1)], labels=[torch.arange(4) % 3])
    (order,) = rank_units(evidence, name, ["d_model"]).values()
    assert sorted(order) == list(range(WIDTH))


def test_the_damage_of_a_narrower_stream_grows_and_is_that_of_masking_it() -> None:
    evidence = Evidence(sites("rms"), [given("rms", 4, 1)])
    orders = rank_units(evidence, "taylor_fo")
    levels = measure_damage(evidence, orders, {"d_model": (8, 24)}, ()).width["d_model"]
    assert levels[8] > levels[24] > levels[WIDTH] == 0.0


def test_a_stream_whose_cut_is_inexact_is_no_choice_of_a_solver() -> None:
    chosen = {c.site.name for c in choices_of(sites("bert"), Multiples(1, 1, 1)) if c.site}
    assert chosen and "d_model" not in chosen
