"""The host profile: measured for real, remembered, and measured again when asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from command_line import edgeprune

from edgeprune import host
from edgeprune.cache import cache_dir
from edgeprune.errors import InputError
from edgeprune.profile import load_profile


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(host, "REPEATS", 2)
    return tmp_path / "cache"


def test_the_host_is_measured_once_and_then_remembered(cache: Path) -> None:
    assert cache_dir() == cache
    measured = load_profile("host")
    (file,) = (cache / "profiles").glob("host-*.toml")
    written = file.stat().st_mtime_ns
    assert load_profile("host") == measured
    assert file.stat().st_mtime_ns == written
    host.probe_host(force=True)
    assert file.stat().st_mtime_ns > written


def test_the_host_profile_is_measured_and_plausible(cache: Path) -> None:
    threads = torch.get_num_threads()
    started = time.monotonic()
    profile = host.probe_host()
    assert time.monotonic() - started < 60
    assert torch.get_num_threads() == threads
    assert not profile.estimated
    assert profile.lowering_note() is None
    assert 1 <= profile.clusters[0].cores <= 1024
    assert 0.5 < profile.clusters[0].peak_gflops_fp32 < 2000
    assert profile.clusters[0].peak_gops_int8 >= 0.9 * profile.clusters[0].peak_gflops_fp32
    assert 0.2 < profile.bandwidth_gbps < 2000
    assert profile.ram_mb > 500


@pytest.mark.nightly
def test_another_processor_is_measured_afresh(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.probe_host()
    monkeypatch.setattr(host, "cpu_model", lambda: "another processor")
    assert host.probe_host().soc == "another processor"
    assert len(list((cache / "profiles").glob("host-*.toml"))) == 2


@pytest.mark.nightly
def test_a_spoilt_cache_is_measured_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    host.probe_host()
    (file,) = (cache / "profiles").glob("host-*.toml")
    file.write_text(file.read_text()[:100])
    assert host.probe_host().name == "host"
    assert "Measuring this machine again" in caplog.text


def test_a_cache_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(host, "REPEATS", 1)
    assert host.probe_host().name == "host"
    assert "was not kept" in caplog.text


def test_an_int8_peak_without_a_fast_product_is_called_estimated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "peak_gops_int8", lambda: 1.0)
    gops, note = host._int8_peak(("neon", "dotprod"), 20.0)
    assert (gops, note.origin) == (80.0, "estimated")


@pytest.mark.nightly
def test_measuring_anew_replaces_what_was_remembered(cache: Path) -> None:
    load_profile("host")
    (file,) = (cache / "profiles").glob("host-*.toml")
    written = file.stat().st_mtime_ns
    document = json.loads(edgeprune("profiles", "measure", "--json").stdout)
    assert [profile["name"] for profile in document["profiles"]] == ["host"]
    assert file.stat().st_mtime_ns > written


def test_only_a_machine_of_its_name_and_instructions_measures_for_a_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n100 = load_profile("n100")
    monkeypatch.setattr(host, "isa_features", lambda: n100.fastest.isa)
    monkeypatch.setattr(host, "cpu_model", lambda: "Intel(R) N100")
    host.check_is_host(n100)
    monkeypatch.setattr(host, "isa_features", lambda: ("avx2",))
    with pytest.raises(InputError, match="it has no fma, avx_vnni"):
        host.check_is_host(n100)
    monkeypatch.setattr(host, "isa_features", lambda: n100.fastest.isa)
    monkeypatch.setattr(host, "cpu_model", lambda: "AMD EPYC")
    with pytest.raises(InputError, match=r"\(AMD EPYC\) is no Intel N100.*'N100' in its name"):
        host.check_is_host(n100)
