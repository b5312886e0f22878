"""The doctor: right about this machine, and about what is missing."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from command_line import edgeprune

from edgeprune import doctor
from edgeprune.doctor import Finding, examine, pins


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_machine_that_runs_the_tests_can_build() -> None:
    ended = edgeprune("doctor", "--json")
    document = json.loads(ended.stdout)
    assert ended.exit_code == 0 and document["can_build"]
    found = {finding["name"]: finding for finding in document["findings"]}
    assert {"python", "torch", "executorch", "torchao", "litert-torch", "cache"} <= set(found)
    assert found["runtime executorch"]["ok"] and found["runtime litert"]["ok"]


def test_pins_are_those_of_the_package() -> None:
    assert pins()["torch"] == ("2.13.0", "")
    assert pins()["scikit-learn"][1] == "tasks" and pins()["ruff"][1] == "dev"


def test_packages_that_are_not_made_for_this_machine_are_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "litert-torch" in pins()
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    assert "litert-torch" not in pins() and "torch" in pins()


def test_a_missing_package_comes_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = metadata.version

    def version(package: str) -> str:
        if package in ("executorch", "scikit-learn"):
            raise metadata.PackageNotFoundError(package)
        return "1.0" if package == "torchao" else there(package)

    monkeypatch.setattr(doctor.metadata, "version", version)
    findings = by_name(list(examine()))
    assert findings["executorch"].needed and "wanted 1.5.1" in findings["executorch"].found
    assert "pip install 'edgeprune[tasks]'" in findings["executorch"].remedy
    assert not findings["scikit-learn"].needed and "[tasks]" in findings["scikit-learn"].remedy
    assert not findings["torchao"].ok and "tested with 0.18.0" in findings["torchao"].found
    assert not [name for name in findings if name.startswith("runtime")]
    ended = edgeprune("doctor")
    assert ended.exit_code == 1 and "a build cannot run yet" in ended.stdout


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    cache = by_name(list(examine()))["cache"]
    assert not cache.ok and cache.needed and "EDGEPRUNE_CACHE" in cache.remedy
