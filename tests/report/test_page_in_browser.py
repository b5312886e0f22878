"""The page in a real browser; skipped, and said so, where no Chromium is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sample import bare, not_measured, sample

from edgeprune.report import Report, write_report
from edgeprune.report.schema import Operator, Operators

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="NOT CHECKED: no Chromium on this machine. Install one (Debian: chromium) to see the "
    "report page drawn by a browser.",
)


@dataclass(frozen=True)
class Browsed:
    """What a browser made of a page: its DOM, console lines, and addresses it asked for."""

    dom: str
    console: list[str]
    asked: list[str]


def browse(page: Path, folder: Path) -> Browsed:
    log = folder / "net.json"
    ran = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            # The page is our own, and containers often have no namespaces for a sandbox.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={folder / 'browser'}",
            f"--log-net-log={log}",
            "--enable-logging=stderr",
            "--virtual-time-budget=4000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    events = json.loads(log.read_text())["events"]
    # Chromium's own errands (its clock, its updates) have "not an origin" as their initiator.
    starts = [event["params"] for event in events if "initiator" in event.get("params", {})]
    asked = {start["url"] for start in starts if start["initiator"] != "not an origin"}
    return Browsed(
        ran.stdout,
        [line for line in ran.stderr.splitlines() if "CONSOLE" in line],
        sorted(url for url in asked if url.startswith(("http", "ws"))),
    )


def drawn(dom: str, plot: str) -> bool:
    """Whether plotly put its SVG, with a trace in it, where the plot belongs."""
    _, found, rest = dom.partition(f'id="{plot}"')
    rest = rest.partition('class="plot"')[0]
    return bool(found) and 'class="main-svg"' in rest and 'class="trace' in rest


@pytest.mark.parametrize(
    ("report", "plots"),
    [
        (sample(), ("front", "measured", "operators", "recovery")),
        pytest.param(
            *(sample(48), ("front", "measured", "operators", "recovery")),
            marks=pytest.mark.nightly,
        ),
        pytest.param(not_measured(), ("front", "recovery"), marks=pytest.mark.nightly),
        (bare(), ()),
    ],
    ids=("measured", "48 layers", "not measured", "bare"),
)
def test_the_page_draws_without_errors_and_without_the_network(
    tmp_path: Path, report: Report, plots: tuple[str, ...]
) -> None:
    found = browse(write_report(report, tmp_path), tmp_path)
    assert found.console == [] and found.asked == []
    assert [plot for plot in plots if not drawn(found.dom, plot)] == []
    assert found.dom.count('class="main-svg"') >= 2 * len(plots)
    assert 'id="cut"' in found.dom and "What was cut" in found.dom


def test_markup_in_an_operators_name_stays_text_in_the_plots(tmp_path: Path) -> None:
    evil = '</script><script>console.error("ran")</script><img src="http://127.0.0.1:9/x">'
    operators = Operators((Operator(evil, 1, 2.0, True),), (Operator(evil, 1, 1.0, True),))
    report = replace(sample(), title=evil, operators=operators)
    found = browse(write_report(report, tmp_path), tmp_path)
    assert found.console == [] and found.asked == []
    assert drawn(found.dom, "operators")


def test_an_error_on_a_page_would_be_noticed(tmp_path: Path) -> None:
    page = write_report(sample(), tmp_path)
    page.write_text(page.read_text().replace("</main>", "<script>undefined.x</script></main>"))
    assert any("TypeError" in line for line in browse(page, tmp_path).console)


def test_the_pages_own_policy_refuses_the_network(tmp_path: Path) -> None:
    page = write_report(sample(), tmp_path)
    image = '<img src="http://127.0.0.1:9/pixel.png">'
    page.write_text(page.read_text().replace("</main>", f"{image}</main>"))
    found = browse(page, tmp_path)
    assert any("Content Security Policy" in line for line in found.console)
    assert found.asked == []


def test_a_request_to_the_network_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/pixel.png">')
    assert browse(page, tmp_path).asked == ["http://127.0.0.1:9/pixel.png"]
