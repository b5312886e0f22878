"""What Linux tells of a machine, read from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.devices import protocol, state


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop of two kinds of cores: the folders that Linux shows."""
    for name in ("CPU_FOLDER", "THERMAL_FOLDER", "POWER_FOLDER"):
        monkeypatch.setattr(state, name, tmp_path / name)
    told = {
        "CPU_FOLDER/cpu0/cpu_capacity": "446",
        "CPU_FOLDER/cpu1/cpufreq/cpuinfo_max_freq": "2400000",
        "CPU_FOLDER/cpu1/cpufreq/scaling_cur_freq": "1200000",
        "THERMAL_FOLDER/thermal_zone0/temp": "41000",
        "THERMAL_FOLDER/thermal_zone1/temp": "47500",
        "POWER_FOLDER/AC/type": "Mains",
        "POWER_FOLDER/BAT0/type": "Battery",
        "POWER_FOLDER/BAT0/capacity": "81",
        "POWER_FOLDER/BAT0/status": "Discharging",
    }
    for name, text in told.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    return tmp_path


def test_a_moment_has_the_clock_and_the_hottest_zone(system: Path) -> None:
    look = state.moment(1, 2.5)
    assert (look.at_s, look.frequency_mhz, look.temperature_c) == (2.5, 1200.0, 47.5)


def test_the_battery_is_a_fact(system: Path) -> None:
    facts = state.local_state((1,), 1).facts
    assert (facts["battery"], facts["charging"]) == ("81%", "discharging")


def test_capacity_is_told_by_either_file_or_not_at_all(system: Path) -> None:
    assert state.capacities((0, 1, 2)) == {0: 446, 1: 2400000, 2: 0}
    (system / "CPU_FOLDER/cpu0/cpu_capacity").unlink()
    assert protocol.processors(state.capacities((0, 1)), 1) == (1,)
