"""What Linux tells about the processor: clocks, temperature, load, memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from edgeprune.devices.measurement import DeviceState
from edgeprune.versions import versions

CPU_FOLDER = Path("/sys/devices/system/cpu")
THERMAL_FOLDER = Path("/sys/class/thermal")


def local_state(affinity: tuple[int, ...], threads: int) -> DeviceState:
    """This machine now; before and after are equal, for whoever measures to tell apart."""
    clock, temperature = frequency_mhz(affinity[0]), temperature_c()
    return DeviceState(
        device="local",
        cpu_model=_cpuinfo("model name", 0) or platform.processor() or platform.machine(),
        governor=_text(CPU_FOLDER / f"cpu{affinity[0]}/cpufreq/scaling_governor"),
        frequency_before_mhz=clock,
        frequency_after_mhz=clock,
        temperature_before_c=temperature,
        temperature_after_c=temperature,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        affinity=affinity,
        threads=threads,
        versions=versions(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def frequency_mhz(cpu: int) -> float | None:
    """The processor's clock, from cpufreq or else from /proc/cpuinfo."""
    kilohertz = _text(CPU_FOLDER / f"cpu{cpu}/cpufreq/scaling_cur_freq")
    if kilohertz is not None:
        return int(kilohertz) / 1000
    megahertz = _cpuinfo("cpu MHz", cpu)
    return float(megahertz) if megahertz else None


def temperature_c() -> float | None:
    """The hottest thermal zone."""
    zones = [_text(zone) for zone in sorted(THERMAL_FOLDER.glob("thermal_zone*/temp"))]
    found = [int(zone) / 1000 for zone in zones if zone is not None]
    return max(found, default=None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _cpuinfo(key: str, cpu: int) -> str | None:
    entries = (_text(Path("/proc/cpuinfo")) or "").split("\n\n")
    for line in entries[cpu].splitlines() if cpu < len(entries) else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
