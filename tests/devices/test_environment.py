"""Environments of other releases: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.devices.environment import Environment
from edgeprune.errors import InputError


def test_a_release_that_does_not_exist_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="ai-edge-litert 0.0.0 cannot be installed: ERROR"):
        Environment("ai-edge-litert", "0.0.0").python()
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
