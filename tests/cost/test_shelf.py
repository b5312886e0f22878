"""Tables leave the shelf as files and come back, with what has changed since said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import edgeprune
from cost_models import encoder

from edgeprune.cost import CostTable, adapt, estimate_costs, shelf
from edgeprune.devices import connect
from edgeprune.errors import InputError
from edgeprune.lower import Lowering
from edgeprune.profile import load_profile
from edgeprune.sites import Sites, find_sites

LOWERING = Lowering("int8")


@pytest.fixture(autouse=True)
def _own_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sites() -> Sites:
    return find_sites(encoder(layers=1))


@pytest.fixture(scope="module")
def table(sites: Sites) -> CostTable:
    """As if measured on this machine."""
    found = estimate_costs(sites, load_profile("pixel8"), LOWERING)
    with connect("local") as device:
        state = device.state()
    return replace(
        found,
        provenance="measured",
        device=f"local: {state.cpu_model}",
        system=state.system,
        versions=state.versions,
    )


def test_what_is_kept_is_listed_with_its_age_and_error(table: CostTable) -> None:
    old = replace(table, date="2026-01-01T00:00:00Z", error_pct={"anchors_worst": 2.5})
    names = [shelf.keep(table), shelf.keep(replace(old, dense_ms=7.0))]
    listed = json.loads(edgeprune("tables", "list", "--json").stdout)["tables"]
    assert [each["name"] for each in listed] == names
    assert listed[0]["age_days"] == 0 < listed[1]["age_days"]
    assert "2.5%" in edgeprune("tables").stdout


def test_a_table_travels_as_one_file(table: CostTable, tmp_path: Path) -> None:
    name, file = shelf.keep(table), tmp_path / "shared.json"
    assert edgeprune("tables", "export", name, file).exit_code == 0
    (shelf.shelf() / f"{name}.json").unlink()
    ended = edgeprune("tables", "import", file, "--json")
    found = json.loads(ended.stdout)
    assert (found["name"], found["warnings"]) == (name, [])
    assert shelf.find(name) == table == shelf.find(str(file))


@pytest.mark.parametrize(
    ("changed", "warned"),
    [
        ({"system": "Linux 4.9.0 armv7l"}, "system was Linux 4.9.0 armv7l, is "),
        ({"versions": {"executorch": "0.4.0"}}, "executorch was 0.4.0, is "),
        ({"device": "local: Cortex-A53"}, "processor was Cortex-A53, is "),
        ({"date": "2025-01-01T00:00:00Z"}, "it was made "),
        ({"provenance": "estimated"}, "nothing was measured"),
    ],
)
def test_an_import_warns_of_what_has_changed(
    table: CostTable, tmp_path: Path, changed: dict[str, object], warned: str
) -> None:
    file = replace(table, **changed).write(tmp_path / "shared.json")  # type: ignore[arg-type]
    ended = edgeprune("tables", "import", file, "--json")
    (warning,) = json.loads(ended.stdout)["warnings"]
    assert warned in warning and warned in " ".join(ended.stderr.split())


def test_a_file_that_is_no_table_is_refused(table: CostTable, tmp_path: Path) -> None:
    file = table.write(tmp_path / "shared.json")
    file.write_text(file.read_text().replace('"edgeprune.table"', '"edgeprune.plan"'))
    assert "wanted 'edgeprune.table'" in edgeprune("tables", "import", file).message
    body = table.to_json()
    body["blocks"][0]["ms"]["by_units"] = [[1, "fast"]]
    broken = CostTable.from_json(json.loads(json.dumps(body))).write(tmp_path / "broken.json")
    assert "takes 'fast' ms" in edgeprune("tables", "import", broken).message
    assert shelf.kept() == {}


def test_an_unknown_name_lists_those_that_there_are(table: CostTable) -> None:
    name = shelf.keep(table)
    with pytest.raises(InputError, match=f"no such file, and not on the shelf, which has: {name}"):
        shelf.find("pixel9")


def test_where_nothing_has_changed_a_table_is_taken_as_it_is(
    sites: Sites, table: CostTable
) -> None:
    with connect("local") as device:
        assert adapt(table, sites, LOWERING, device) is table
    assert adapt(replace(table, system="other"), sites, LOWERING, None).system == "other"
