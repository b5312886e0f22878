"""What a device's files say of it: a phone with three kinds of cores, a board, an emulator."""

from __future__ import annotations

from edgeprune.devices.facts import Facts, facts_of

CPU = "/sys/devices/system/cpu/cpu"
PARTS = {"0xd46": (0, 1), "0xd4d": (2,), "0xd4e": (3,)}
CAPACITIES = (160, 160, 700, 1024)


def phone_files() -> dict[str, str]:
    """Of a phone with two slow cores, a faster and a fastest one."""
    part_of = {cpu: part for part, cpus in PARTS.items() for cpu in cpus}
    flags = "fp asimd asimdhp asimddp i8mm bf16"
    processors = "\n\n".join(
        f"processor\t: {cpu}\nFeatures\t: {flags}\nCPU implementer\t: 0x41\nCPU part\t: {part}"
        for cpu, part in sorted(part_of.items())
    )
    return {
        "machine": "aarch64",
        "system": "Linux 6.1.43",
        "free_bytes": str(5000 * 2**20),
        "affinity": "0 1 2 3",
        "/proc/cpuinfo": processors,
        "/proc/meminfo": "MemTotal:        7800000 kB\nMemFree: 1 kB",
        "/proc/loadavg": "0.52 0.40 0.30 1/900 77",
        "/sys/class/thermal/thermal_zone0/temp": "51000",
        "/sys/class/thermal/thermal_zone1/temp": "-",
        **{f"{CPU}{cpu}/cpu_capacity": str(each) for cpu, each in enumerate(CAPACITIES)},
        **{
            f"{CPU}{cpu}/cpufreq/cpuinfo_max_freq": f"{each}000"
            for cpu, each in enumerate(CAPACITIES)
        },
        f"{CPU}3/cpufreq/scaling_cur_freq": "500000",
        f"{CPU}3/cpufreq/scaling_governor": "sched_pixel",
    }


def phone(**told: str) -> Facts:
    properties = {"android": "14", "model": "Pixel 8", "soc": "Tensor G3", **told}
    return facts_of("adb:1", phone_files(), properties)


def test_cores_of_one_kind_are_a_cluster_and_the_fastest_comes_first() -> None:
    clusters = phone().clusters
    assert [[core.number for core in each] for each in clusters] == [[3], [2], [0, 1]]
    names = [each[0].model for each in clusters]
    assert names == ["Arm Cortex-X3", "Arm Cortex-A715", "Arm Cortex-A510"]
    assert clusters[0][0].isa == ("neon", "fp16", "dotprod", "i8mm", "bf16")
    assert clusters[0][0].max_mhz == 1024


def test_a_phone_is_called_what_android_calls_it_and_is_as_warm_as_its_battery() -> None:
    found = phone(**{"battery temperature": "312", "screen": "Asleep"})
    assert (found.title, found.soc, found.system) == ("Pixel 8", "Tensor G3", "Android 14 aarch64")
    assert found.temperature_c == 31.2
    assert found.told == {"screen": "Asleep"}
    assert phone().temperature_c == 51
    assert (found.governor, found.frequency_mhz) == ("sched_pixel", {3: 500})
    assert (found.ram_mb, found.free_mb, found.load_average) == (7987, 5000, 0.52)


def test_a_translated_program_is_told_by_the_kernels_own_word_for_the_processor() -> None:
    assert phone().emulated is None
    files = {**phone_files(), "/proc/sys/kernel/arch": "x86_64"}
    assert facts_of("adb:1", files, {}).emulated == "on x86_64"
    assert phone(emulator="1").emulated == "Android's emulator"


def test_a_system_that_tells_little_is_no_error() -> None:
    bare = {"machine": "x86_64", "system": "Linux 5.10", "free_bytes": "0", "affinity": "0"}
    found = facts_of("ssh:board", bare, {})
    assert found.clusters[0][0].model == "x86_64"
    assert (found.temperature_c, found.governor, found.load_average) == (None, None, None)
