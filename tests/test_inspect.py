"""A model as a table: 48 layers that are alike are one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import edgeprune, tiny_task
from rich.console import Console

from edgeprune.inspect import rows_of, sites_table, verdict
from edgeprune.sites import Site
from edgeprune.tasks import digits_vit


def heads(name: str, units: int = 12) -> Site:
    return Site(name, "heads", units, parameters=100)


def test_layers_that_are_alike_share_a_line() -> None:
    sites = [heads(f"encoder.layer.{i}.heads") for i in range(48)]
    sites += [replace(site, name=site.name + "2", axis="ffn") for site in sites]
    assert [(row.name, row.count) for row in rows_of(sites)] == [
        ("encoder.layer.{0…47}.heads", 48),
        ("encoder.layer.{0…47}.heads2", 48),
    ]


def test_a_layer_that_differs_stands_alone() -> None:
    sites = [heads(f"h.{i}", units=8 if i == 3 else 12) for i in range(6)]
    assert [(row.name, row.site.units) for row in rows_of(sites)] == [
        ("h.{0…2,4…5}", 12),
        ("h.3", 8),
    ]


def test_stages_with_unequal_depth_are_not_mixed_up() -> None:
    depths = (2, 2, 4)
    sites = [
        heads(f"stages.{s}.blocks.{b}") for s, depth in enumerate(depths) for b in range(depth)
    ]
    rows = rows_of(sites)
    assert [row.name for row in rows] == [
        f"stages.{s}.blocks.{{0…{d - 1}}}" for s, d in enumerate(depths)
    ]
    assert sum(row.count for row in rows) == len(sites)
    grid = [site for site in sites if not site.name.startswith("stages.2")]
    assert [row.name for row in rows_of(grid)] == ["stages.{0…1}.blocks.{0…1}"]


def test_the_table_says_why_not() -> None:
    console = Console(width=120, record=True, file=None)
    frozen = replace(heads("head"), why_not="it is an output of the model")
    tokens = Site("0.tokens", "tokens", 17, pinned=(0,))
    console.print(sites_table(rows_of([frozen, tokens])))
    text = console.export_text()
    assert "no: it is an output of the model" in text and "yes; token 0 stays" in text


def test_layers_whose_reasons_name_other_nodes_and_lines_share_a_line() -> None:
    reason = "mul{} (aten.mul.Tensor, at model.py:{}) runs over it"
    numbers = [("", 57), ("_1", 57), ("_12", 60)]
    sites = [
        replace(heads(f"h.{i}"), why_not=reason.format(*each)) for i, each in enumerate(numbers)
    ]
    sites += [replace(heads(f"g.{i}"), inexact=reason.format("_3", i)) for i in range(3)]
    sites += [replace(heads("h.3"), why_not="amax (aten.amax.default) runs over it")]
    assert [(row.name, row.count) for row in rows_of(sites)] == [
        ("h.{0…2}", 3),
        ("g.{0…2}", 3),
        ("h.3", 1),
    ]


def test_the_table_says_what_is_inexact_and_what_a_plan_must_name() -> None:
    narrow = replace(heads("d_model"), inexact="layer_norm (aten.layer_norm.default) runs over it")
    words = replace(heads("words.vocabulary"), opt_in="it changes ids")
    assert verdict(narrow) == "yes, inexactly: layer_norm (aten.layer_norm.default) runs over it"
    assert verdict(words) == "yes, if a plan names it: it changes ids"


def test_the_command_shows_a_built_in_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(digits_vit, "STEPS", 1)
    text = edgeprune("inspect", "digits-vit").stdout
    assert "blocks.{0…3}.heads" in text and "26 of 27 sites can be cut" in text


def test_sensitivity_and_the_page_come_on_demand(tmp_path: Path) -> None:
    page = tmp_path / "sites.html"
    ended = edgeprune("inspect", tiny_task(tmp_path), "--sensitivity", "--html", page, "--json")
    document = json.loads(ended.stdout)
    by_name = {site["name"]: site for site in document["sites"]}
    neurons = by_name["0.neurons"]
    assert [kept for kept, _ in neurons["damage"]] == [64, 48, 32, 16]
    assert neurons["behind"]["half"]["parameters"] == 32 * (16 + 1 + 16)
    assert 'id="curves"' in page.read_text()


def test_a_saved_model_has_no_data_to_measure_on(tmp_path: Path) -> None:
    ended = edgeprune("inspect", tmp_path / "m.pt2", "--sensitivity")
    assert ended.exit_code == 2 and "--calibration FILE.npz" in ended.message
    ended = edgeprune("inspect", tmp_path / "m.pt2", "--criterion", "l1")
    assert ended.exit_code == 2 and "--sensitivity" in ended.message
