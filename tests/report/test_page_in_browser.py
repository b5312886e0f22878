"""The page in a real browser; skipped, and said so, where no Chromium is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sample import sample

from edgeprune.report import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it to check the page")
@pytest.mark.parametrize("measured", [True, False])
def test_the_page_draws_without_errors(tmp_path: Path, measured: bool) -> None:
    page = write_report(sample(measured=measured), tmp_path)
    ran = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            f"--user-data-dir={tmp_path / 'browser'}",
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
    assert "CONSOLE" not in ran.stderr, ran.stderr
    assert ran.stdout.count('class="main-svg"') >= (8 if measured else 4)
    assert 'id="cut"' in ran.stdout and "What was cut" in ran.stdout
