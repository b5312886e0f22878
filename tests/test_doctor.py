"""The doctor: right about this machine, and about what is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from command_line import edgeprune

from edgeprune import doctor
from edgeprune.devices import tflite_runtime
from edgeprune.doctor import Finding, examine, pins
from edgeprune.errors import InputError


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


@pytest.mark.nightly
@pytest.mark.skipif(sys.version_info[:2] > (3, 11), reason="tflite-runtime has no package for it")
def test_silently_wrong_int8_in_the_old_runtime_is_caught() -> None:
    ended = edgeprune("doctor", "--tflite-runtime", "--json")
    found = {finding["name"]: finding for finding in json.loads(ended.stdout)["findings"]}
    assert ended.exit_code == 0
    assert found["tflite-runtime fp32"]["ok"] and not found["tflite-runtime int8"]["ok"]
    assert "WRONG without a word" in found["tflite-runtime int8"]["found"]
    assert "--precision fp32" in found["tflite-runtime int8"]["remedy"]


def test_a_python_that_the_old_runtime_has_no_package_for_is_named() -> None:
    older = replace(tflite_runtime.ENVIRONMENT, newest_python=(3, 10))
    with pytest.raises(InputError, match="has packages for Python up to 3.10, this is 3.1"):
        older.python()
