"""What is behind a site is what surgery takes away with it, to the last weight."""

from __future__ import annotations

import pytest
from models import HEADS, WIDTH, sites

from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.program.flops import PRODUCTS, flops
from edgeprune.program.graph import calls
from edgeprune.sites import Site, Sites
from edgeprune.surgery import apply
from edgeprune.weigh import Leaving, Scale


def work(program: Program) -> Leaving:
    """Counted on the graph as it stands."""
    total = sum(map(flops, calls(program.module.graph, *PRODUCTS)))
    return Leaving(program.parameters, total // program.example_inputs[0].shape[0])


def halved(found: Sites, site: Site) -> Plan:
    program = found.program.fingerprint
    left = site.units - site.units // 2
    if site.kind == "rank":
        return Plan(program, rank={site.name: left})
    if site.name in found.lengths:
        return Plan(program, length={site.name: left})
    return Plan(program, {site.name: () if site.kind == "depth" else tuple(range(left))})


@pytest.mark.parametrize(
    "name", ["bert", "llama", "fused", "convolutional", "densely_connected", "vit"]
)
def test_half_of_a_site_is_what_leaves_when_half_of_it_is_cut(name: str) -> None:
    found = sites(name)
    scale = Scale(found)
    before = work(found.program)
    assert scale.total == before
    chosen = {site.axis: site for site in found.cuttable if site.axis != "tokens"}
    for site in chosen.values():
        after = work(apply(found.program, halved(found, site), found))
        left = Leaving(before.parameters - after.parameters, before.flops - after.flops)
        assert scale.behind[site.name].half == left, site.name


def test_a_token_cut_spares_work_and_no_weights_and_less_of_it_later() -> None:
    found = sites("vit")
    first, last = (Scale(found).behind[f"vit.layers.{i}.tokens"].half for i in (0, 1))
    assert first.parameters == last.parameters == 0
    assert first.flops > last.flops > 0


def test_a_heads_weights_are_counted_once_and_its_partners_named() -> None:
    heads = Scale(sites("bert")).behind["bert.encoder.layer.0.heads"]
    # Queries, keys and values with their biases, and the output's columns.
    assert heads.whole.parameters == 4 * WIDTH * WIDTH + 3 * WIDTH
    assert heads.half.parameters * 2 == heads.whole.parameters and HEADS % 2 == 0
    assert "d_model" in heads.shares_with
    assert "bert.encoder.layer.0.neurons" not in heads.shares_with


def test_a_matrix_between_two_halves_of_itself_is_not_counted_twice() -> None:
    scale = Scale(sites("bert"))
    stream = scale.behind["d_model"].whole.parameters
    assert stream < scale.total.parameters
