"""docs/compatibility.md says what is so: which releases load our files and run them right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from lower_blocks import encoder, encoder_inputs

from edgeprune.program import capture

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from compatibility import RELEASES, TORCH, WAYS, Release, committed, run_all  # noqa: E402

BY_NAME = {release.name: release for release in RELEASES}
# Installed here, and the one that other tests install.
AT_HAND = [release.name for release in RELEASES if release.environment is None]
AT_HAND += ["tflite-runtime 2.14.0"] if sys.version_info[:2] <= (3, 11) else []
SMALL = [name for name in BY_NAME if name not in AT_HAND and name.split()[1] not in TORCH]


def found(releases: Sequence[Release]) -> dict[tuple[str, str], str]:
    program = capture(encoder(layers=1), encoder_inputs(rows=3))
    cells = run_all(program, releases, rounds=1)
    return {key: cell.verdict for key, cell in cells.items()}


def said(names: Sequence[str]) -> dict[tuple[str, str], str]:
    return {key: verdict for key, verdict in committed().items() if key[0] in names}


def test_the_page_has_every_release_in_every_way() -> None:
    assert committed().keys() == set(product(BY_NAME, map(str, WAYS)))
    assert set(committed().values()) == {"right", "wrong", "no"}


@pytest.mark.nightly
def test_releases_at_hand_do_what_the_page_says() -> None:
    assert found([BY_NAME[name] for name in AT_HAND]) == said(AT_HAND)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_older_releases_do_what_the_page_says() -> None:
    assert found([BY_NAME[name] for name in SMALL]) == said(SMALL)


@pytest.mark.nightly
@pytest.mark.parametrize("version", TORCH)
def test_releases_with_another_torch_do_what_the_page_says(version: str) -> None:
    release = BY_NAME[f"executorch {version}"]
    assert release.environment is not None
    if not release.environment.folder.exists():
        pytest.skip("its torch takes 5 GB; tools/compatibility.py installs it")
    assert found([release]) == said([release.name])
