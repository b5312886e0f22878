"""The page says what the build found, escapes what it is given, and needs no network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from sample import sample

from edgeprune.report import render, write_report
from edgeprune.report.picture import picture


def without_library(page: str) -> str:
    return page.split("</script>", 1)[1]


def test_the_first_cards_compare_dense_and_pruned() -> None:
    page = without_library(render(sample()))
    assert "6 ms" in page and "3.5 ms" in page and "58%" in page
    assert "-1.80 to -0.40 points" in page
    assert "budget met" in page


def test_estimates_are_called_estimates() -> None:
    page = without_library(render(sample(measured=False)))
    assert "all costs estimated, none measured" in page
    assert "not measured" in page and "median, measured" not in page


def test_a_name_with_markup_is_escaped() -> None:
    body = sample() | {"title": "<script>alert(1)</script>", "licence": "<b>"}
    page = without_library(render(body))
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = without_library(render(sample()))
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_the_picture_shows_a_removed_layer_and_every_kept_head() -> None:
    rows = sample()["layers"]
    drawn = picture(rows)
    assert drawn.count('class="gone"') == sum(row["removed"] for row in rows)
    heads = picture([row for row in rows if row["axis"] == "heads"][4:5])
    assert heads.count("fill-opacity:1.00") == 8 and heads.count("fill-opacity:0.10") == 4


def test_a_picture_of_48_layers_keeps_one_line_each() -> None:
    assert picture(sample(layers=48)["layers"]).count("<title>encoder.layer.") == 96


def test_both_files_are_written(tmp_path: Path) -> None:
    page = write_report(sample(), tmp_path)
    assert page.name == "report.html"
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "minilm-20news"


@pytest.mark.parametrize("status", ["over_budget", "below_score", "not_faster", "wrong_numerics"])
def test_every_verdict_has_words(status: str) -> None:
    page = without_library(render(sample() | {"status": status, "reason": "latency_ms: got 9"}))
    assert f'class="badge {status}"' in page and "latency_ms: got 9" in page
