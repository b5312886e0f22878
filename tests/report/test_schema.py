"""A report survives the trip through its file, and a wrong file is refused by the field's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample import bare, not_measured, sample

from edgeprune.errors import InputError
from edgeprune.report import Report, write_report


@pytest.mark.parametrize("report", [sample(), not_measured(), bare()])
def test_a_report_reads_back_equal(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert Report.read(tmp_path / "report.json") == report


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("title",), 3, "report.title: got '3', wanted str"),
        (("outcome", "status"), "fine", "report.outcome.status: got 'fine', wanted one of met"),
        (("layers", 0, "kept"), [0, "1"], r"report.layers.0.kept.1: got '1', wanted int"),
        (("pruned", "p50_ms"), 3.5, "report.pruned.p50_ms: got '3.5', wanted an object"),
        (("comparison", "interval_points"), [1.0], "interval_points: .* wanted 2 entries"),
        (("costs", "extra"), 1, "report.costs: got an unknown 'extra'"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    body = json.loads(json.dumps(sample().to_json()))
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError, match=message):
        Report.from_json(body)


def test_a_missing_field_is_named_with_the_file(tmp_path: Path) -> None:
    write_report(sample(), tmp_path)
    body = json.loads((tmp_path / "report.json").read_text())
    del body["front"]["certificate"]
    (tmp_path / "report.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"report\.json: report\.front: got no 'certificate'"):
        Report.read(tmp_path / "report.json")
