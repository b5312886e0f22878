"""What Linux tells about the processor: clocks, temperature, load, memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from edgeprune.devices.measurement import DeviceState, Moment
from edgeprune.versions import versions

CPU_FOLDER = Path("/sys/devices/system/cpu")
THERMAL_FOLDER = Path("/sys/class/thermal")
POWER_FOLDER = Path("/sys/class/power_supply")


def local_state(affinity: tuple[int, ...], threads: int) -> DeviceState:
    """This machine now."""
    return DeviceState(
        device="local",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_model=_cpuinfo("model name", 0) or platform.processor() or platform.machine(),
        governor=_text(CPU_FOLDER / f"cpu{affinity[0]}/cpufreq/scaling_governor"),
        moments=(moment(affinity[0], 0.0),),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        affinity=affinity,
        threads=threads,
        versions=versions(),
        facts=_facts(),
    )


def moment(cpu: int, at_s: float) -> Moment:
    """A look at this machine."""
    return Moment(at_s, frequency_mhz(cpu), temperature_c())


def capacities(cpus: Iterable[int]) -> dict[int, int]:
    """How fast each processor is, in Linux's own units; 0 for all where it does not tell."""
    sources = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")
    told = {cpu: [_text(CPU_FOLDER / f"cpu{cpu}" / each) for each in sources] for cpu in cpus}
    return {cpu: int(next(filter(None, values), 0)) for cpu, values in told.items()}


def _facts() -> dict[str, str]:
    """What else bears on the clock."""
    facts = {}
    for supply in sorted(POWER_FOLDER.glob("*")):
        if _text(supply / "type") == "Battery":
            facts["battery"] = f"{_text(supply / 'capacity')}%"
            facts["charging"] = (_text(supply / "status") or "not told").lower()
    if "hypervisor" in (_cpuinfo("flags", 0) or "").split():
        facts["virtual machine"] = "yes"
    return facts


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
