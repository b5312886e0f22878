"""Sensitivity before anything is cut: curves that start at nothing and belong to every site."""

from __future__ import annotations

from functools import cache

from models import inputs, sites
from rich.console import Console

from edgeprune.importance import Evidence
from edgeprune.plan import Plan
from edgeprune.report.curves import curves_picture
from edgeprune.report.sites_page import sites_page
from edgeprune.sensitivity import Curve, measure_sensitivity, most_damage, sensitivity_table
from edgeprune.surgery import apply
from edgeprune.weigh import Scale


@cache
def curves() -> tuple[Curve, ...]:
    return measure_sensitivity(sites("bert_first"), [inputs("bert_first", batch=8, seed=3)])


def test_every_site_that_can_be_cut_has_a_curve_from_no_damage_on() -> None:
    names = {site.name for site in sites("bert_first").cuttable if site.axis != "layer"}
    assert {curve.site.name for curve in curves()} == names
    for curve in curves():
        units = [kept for kept, _ in curve.points]
        assert units == sorted(units, reverse=True) and units[0] == curve.site.units
        assert curve.points[0][1] == 0.0 and curve.worst > 0
        assert curve.at(0.5) is not None or curve.site.kind == "depth"


def test_a_removed_sub_layer_has_the_damage_that_was_measured() -> None:
    name = "bert.encoder.layer.1.ffn"
    curve = next(curve for curve in curves() if curve.site.name == name)
    evidence = Evidence(sites("bert_first"), [inputs("bert_first", batch=8, seed=3)])
    closed = evidence.gated.gates[name].detach().clone().zero_()
    assert curve.worst == evidence.movement({evidence.gated.paths[name]: closed})
    assert curve.at(0.5) is None and curve.at(0.0) == curve.worst


def test_a_smaller_picture_moves_the_outputs_as_far_as_the_program_resized_to_it() -> None:
    found = sites("vit")
    batches = [inputs("vit", batch=8, seed=3)]
    (curve,) = (c for c in measure_sensitivity(found, batches) if c.site.axis == "resolution")
    assert [size for size, _ in curve.points] == [16, 12, 8, 4]
    assert 0.0 == curve.points[0][1] < curve.points[1][1] < curve.worst
    plan = Plan(found.program.fingerprint, length={curve.site.name: 8})
    evidence = Evidence(found, batches)
    assert curve.at(0.5) == evidence.moved_by(apply(found.program, plan, found))


def test_the_table_is_one_line_a_kind_and_the_worst_is_named() -> None:
    console = Console(width=100, record=True, file=None)
    table = sensitivity_table(curves())
    assert table.row_count == 6  # heads, neurons, attention, ffn, tokens, rank
    console.print(table)
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    assert any(line.startswith("bert.encoder.layer.{0…1}.heads") for line in lines)
    worst = max(curves(), key=lambda curve: curve.worst)
    assert most_damage(curves()).startswith(worst.site.name)


def test_the_picture_has_a_cell_for_every_curve_and_the_page_stands_alone() -> None:
    picture = curves_picture(curves())
    assert picture.count("<g>") == len(curves())
    page = sites_page("bert & co", Scale(sites("bert_first")), curves())
    assert "bert &amp; co" in page and 'id="curves"' in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "<script" not in page and "bert.encoder.layer.{0…1}.heads" in page


def test_what_was_not_measured_is_said_on_the_page() -> None:
    page = sites_page("bert", Scale(sites("bert_first")))
    assert "Not measured" in page and "it is an output of the model" in page
