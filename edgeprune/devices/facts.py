"""What a device's system says of it, read from the files that its keeper copied out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgeprune.devices import protocol
from edgeprune.devices.measurement import Moment
from edgeprune.host import FEATURES

MB = 2**20
# Arm's own numbers for its cores, from their technical reference manuals.
ARM_CORES = {
    **{0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57"},
    **{0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76"},
    **{0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78"},
    **{0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710"},
    **{0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3"},
    **{0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4"},
}
ARM = 0x41


@dataclass(frozen=True)
class Core:
    """One processor.

    Attributes:
        model: its own name, as in ``Arm Cortex-X3``.
        capacity: how fast, in Linux's own units; its highest clock where those are not told.
        isa: as in a profile's cluster.
    """

    number: int
    model: str
    capacity: int
    max_mhz: float | None
    isa: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """A device; None where it does not tell.

    Attributes:
        name: as given to ``connect``, the serial filled in.
        title: what its maker calls it.
        system: kernel or Android, and machine.
        cores: that programs may use.
        frequency_mhz: of each of them now.
        emulated: by what, if the processor is not the one that it says it is.
        told: what else bears on its speed, or was told by its kind of device alone.
    """

    name: str
    title: str
    soc: str
    system: str
    cores: tuple[Core, ...]
    frequency_mhz: dict[int, float]
    governor: str | None
    temperature_c: float | None
    load_average: float | None
    ram_mb: int
    free_mb: int
    emulated: str | None
    told: dict[str, str]

    @property
    def clusters(self) -> tuple[tuple[Core, ...], ...]:
        """Cores of one kind together, the fastest first."""
        named = {core.number: core for core in self.cores}
        groups = protocol.clusters({core.number: core.capacity for core in self.cores})
        return tuple(tuple(named[number] for number in group) for group in groups)

    def moment(self, cpu: int) -> Moment:
        """The look that was taken."""
        return Moment(0.0, self.frequency_mhz.get(cpu), self.temperature_c)


def facts_of(name: str, files: Mapping[str, str], properties: Mapping[str, str]) -> Facts:
    """What both tell.

    Args:
        files: path -> content, and what ``keeper facts`` adds.
        properties: of the transport.
    """
    told = dict(properties)
    processors = _processors(files.get("/proc/cpuinfo", ""))
    allowed = tuple(int(each) for each in files.get("affinity", "").split())
    cores = tuple(_core(cpu, files, processors) for cpu in allowed)
    release = _quoted(files.get("/etc/os-release", ""), "PRETTY_NAME")
    android = told.pop("android", "")
    system = f"Android {android}" if android else release or files["system"]
    title = files.get("/proc/device-tree/model", "").strip("\0")
    memory = re.search(r"MemTotal:\s+(\d+) kB", files.get("/proc/meminfo", ""))
    governors = _by_cpu(files, "cpufreq/scaling_governor")
    clocks = {cpu: int(each) / 1e3 for cpu, each in _by_cpu(files, "scaling_cur_freq").items()}
    for cpu, lines in processors.items():
        if "cpu MHz" in lines:
            clocks.setdefault(cpu, float(lines["cpu MHz"]))
    model = cores[0].model if cores else "unknown"
    told |= _battery(files)
    if "hypervisor" in processors.get(0, {}).get("flags", "").split():
        told["virtual machine"] = "yes"
    return Facts(
        name=name,
        title=told.pop("model", "") or title or model,
        soc=told.pop("soc", "") or told.pop("board", "") or title or model,
        system=f"{system} {files['machine']}",
        cores=cores,
        frequency_mhz=clocks,
        governor=governors.get(allowed[-1]) if allowed else None,
        temperature_c=_temperature(files, told),
        load_average=_first_number(files.get("/proc/loadavg", "")),
        ram_mb=int(memory[1]) * 1024 // 10**6 if memory else 0,
        free_mb=int(files["free_bytes"]) // MB,
        emulated=_emulated(files, told),
        told=told,
    )


def _processors(text: str) -> dict[int, dict[str, str]]:
    """Linux's list of processors; lines before the first or after the last are all's."""
    found: dict[int, dict[str, str]] = {}
    common: dict[str, str] = {}
    lines = common
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            continue
        if key == "processor" and value.isdecimal():
            lines = found.setdefault(int(value), {})
        else:
            lines[key] = value
    return {cpu: common | lines for cpu, lines in found.items()}


def _core(cpu: int, files: Mapping[str, str], processors: dict[int, dict[str, str]]) -> Core:
    lines = processors.get(cpu, {})
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    if files["machine"] == "aarch64":
        flags.add("asimd")
    top = _by_cpu(files, "cpufreq/cpuinfo_max_freq").get(cpu)
    capacity = _by_cpu(files, "cpu_capacity").get(cpu)
    return Core(
        number=cpu,
        model=_core_model(lines) or files["machine"],
        capacity=int(capacity or top or 0),
        max_mhz=int(top) / 1e3 if top else None,
        isa=tuple(name for flag, name in FEATURES.items() if flag in flags),
    )


def _core_model(lines: dict[str, str]) -> str:
    maker, part = (int(lines.get(key, "0"), 16) for key in ("CPU implementer", "CPU part"))
    if maker == ARM:
        return f"Arm {ARM_CORES.get(part, f'core {part:#x}')}"
    if maker:
        return f"core {part:#x} of maker {maker:#x}"
    return lines.get("model name", "")


def _by_cpu(files: Mapping[str, str], name: str) -> dict[int, str]:
    pattern = re.compile(rf"/sys/devices/system/cpu/cpu(\d+)/(?:cpufreq/)?{re.escape(name)}")
    found = ((pattern.fullmatch(path), text) for path, text in files.items())
    return {int(match[1]): text for match, text in found if match}


def _temperature(files: Mapping[str, str], told: dict[str, str]) -> float | None:
    """A phone's battery, as ``docs/measuring.md`` gates on; else the hottest zone."""
    battery = told.pop("battery temperature", "")
    if battery:
        return int(battery) / 10
    zones = [
        int(text) / 1e3
        for path, text in files.items()
        if re.fullmatch(r"/sys/class/thermal/thermal_zone\d+/temp", path)
        and re.fullmatch(r"-?\d+", text)
    ]
    return max(zones, default=None)


def _battery(files: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for path, text in files.items():
        if path.startswith("/sys/class/power_supply/"):
            kind = PurePosixPath(path).name
            found[{"capacity": "battery", "status": "charging"}[kind]] = text.lower()
    return found


def _emulated(files: Mapping[str, str], told: dict[str, str]) -> str | None:
    """The kernel's own word for the processor is not translated by emulators of programs."""
    kernel = files.get("/proc/sys/kernel/arch", files["machine"])
    if told.pop("emulator", "") in ("1", "true"):
        return "Android's emulator"
    return None if kernel == files["machine"] else f"on {kernel}"


def _quoted(text: str, key: str) -> str:
    found = re.search(rf'^{key}="?([^"\n]*)"?$', text, re.MULTILINE)
    return found[1] if found else ""


def _first_number(text: str) -> float | None:
    return float(text.split()[0]) if text.split() else None
