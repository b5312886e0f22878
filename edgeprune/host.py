"""The machine edgeprune runs on, measured once and remembered."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

from edgeprune.budget import Budget
from edgeprune.cache import cache_dir
from edgeprune.console import progress
from edgeprune.errors import InputError
from edgeprune.files import content_hash, write_text
from edgeprune.profile import (
    Cluster,
    Multiples,
    Profile,
    Provenance,
    profile_toml,
    read_profile,
)

log = logging.getLogger(__name__)

REPEATS = 12
"""Runs of each measurement; the fastest counts, so other load does not slow the profile."""

FEATURES = {
    **{flag: flag for flag in ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")},
    **{"asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16"},
}
INT8_SPEEDUP = {"i8mm": 8, "avx512_vnni": 4, "avx_vnni": 4, "dotprod": 4}
"""int8 over fp32 multiply-adds per cycle, by the instructions' own widths."""


def probe_host(force: bool = False) -> Profile:
    """This machine's profile, from the cache if it was measured before (takes seconds if not).

    Args:
        force: measure anew, and replace what the cache holds.
    """
    model, isa, cores = cpu_model(), isa_features(), usable_cores()
    file = cache_dir() / "profiles" / f"host-{content_hash(model, isa, cores)}.toml"
    if file.exists() and not force:
        try:
            return read_profile(file)
        except InputError as error:
            log.warning("%s Measuring this machine again.", error)
    profile = _measure(model, isa, cores)
    _remember(file, profile)
    return profile


def machine_names() -> str:
    """All that this machine calls itself: its processor, and its board where it has a name."""
    names = [cpu_model()]
    for file in ("model", "compatible"):
        with contextlib.suppress(OSError):
            names.append(Path("/proc/device-tree", file).read_text().replace("\0", " ").strip())
    return ", ".join(names)


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    named = _cpuinfo("model name") or _cpuinfo("Model") or platform.processor()
    return named or platform.machine()


def isa_features() -> tuple[str, ...]:
    """Instruction set features that kernels care for, in a fixed order."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    if platform.machine() in ("arm64", "aarch64"):
        flags.add("asimd")
    return tuple(name for flag, name in FEATURES.items() if flag in flags)


def check_is_host(profile: Profile) -> None:
    """Refuse to measure here in the name of a device that this machine is not.

    Raises:
        InputError: it has another name than the profile's device, or lacks its instructions.
    """
    lacking = [name for name in profile.fastest.isa if name not in isa_features()]
    lacking = [name for name in lacking if name in FEATURES.values()]
    if profile.machine.lower() not in machine_names().lower():
        lacking.insert(0, f"'{profile.machine}' in its name")
    if lacking:
        raise InputError(
            f"device local: this machine ({machine_names()}) is no {profile.title}: it has no "
            f"{', '.join(lacking)}. Leave --device out for estimates, or build for --profile host."
        )


def usable_cores() -> int:
    """Physical cores, or fewer if this process may not run on all of them."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return min(physical, allowed)


def peak_gflops_fp32() -> float:
    """What one core reaches in a float32 matrix product that stays in cache.

    The better of torch's BLAS and oneDNN: on AMD, MKL leaves AVX-512 idle (102 against 231
    GFLOP/s on a Zen 5 core).
    """
    left, right = torch.rand(768, 768), torch.rand(768, 768)
    products: list[Callable[[], object]] = [lambda: torch.mm(left, right)]
    if torch.backends.mkldnn.is_available():
        blocked = left.to_mkldnn()
        products.append(lambda: torch.ops.aten.mkldnn_linear(blocked, right))
    return 2 * 768**3 / min(_fastest_s(product) for product in products) / 1e9


def peak_gops_int8() -> float:
    """What one core reaches in an int8 matrix product with int32 sums."""
    left = torch.randint(-127, 127, (768, 768), dtype=torch.int8)
    right = torch.randint(-127, 127, (768, 768), dtype=torch.int8)
    return 2 * 768**3 / _fastest_s(lambda: torch._int_mm(left, right)) / 1e9


def bandwidth_gbps() -> float:
    """Bytes read plus bytes written per second by one core in a copy far larger than the cache."""
    size = min(256 << 20, psutil.virtual_memory().available // 8)
    source = np.ones(size, dtype=np.uint8)
    target = np.empty_like(source)
    return 2 * size / _fastest_s(lambda: np.copyto(target, source)) / 1e9


def _measure(model: str, isa: tuple[str, ...], cores: int) -> Profile:
    system = Provenance("measured", "reported by the operating system")
    product = Provenance(
        "measured", f"torch matrix product, 768 x 768, one thread, best of {REPEATS}"
    )
    with progress("measuring this machine", 3) as advance:
        gflops = peak_gflops_fp32()
        advance(note=f"{gflops:.0f} GFLOP/s fp32")
        gops, int8 = _int8_peak(isa, gflops)
        advance(note=f"{gops:.0f} GOP/s int8")
        gbps = bandwidth_gbps()
        advance(note=f"{gbps:.0f} GB/s")
    clock_ghz, clock = _clock(gflops, isa)
    columns = 32 if "avx512f" in isa else 16 if "avx2" in isa else 8
    kernels = Provenance("vendor", "columns of XNNPACK's f32 GEMM kernel for this instruction set")
    chosen = Provenance("estimated", "whole heads; XNNPACK's row tiles divide 8")
    return Profile(
        name="host",
        title=f"this machine ({model})",
        soc=model,
        runtime="executorch",
        delegate="auto",
        precision="int8",
        clusters=(Cluster("cpu", model, isa, cores, clock_ghz, round(gflops, 1), round(gops, 1)),),
        ram_mb=psutil.virtual_memory().total // 10**6,
        bandwidth_gbps=round(gbps, 1),
        accelerator=None,
        multiples=Multiples(heads=1, ffn=columns, tokens=8),
        budget=Budget.parse("latency=60%"),
        provenance={
            "clusters.cpu.cores": system,
            "clusters.cpu.clock_ghz": clock,
            "clusters.cpu.peak_gflops_fp32": product,
            "clusters.cpu.peak_gops_int8": int8,
            "memory.ram_mb": system,
            "memory.bandwidth_gbps": Provenance(
                "measured", f"numpy copy, one thread, best of {REPEATS}, reads plus writes"
            ),
            "multiples.heads": chosen,
            "multiples.ffn": kernels,
            "multiples.tokens": chosen,
        },
    )


def _int8_peak(isa: tuple[str, ...], gflops: float) -> tuple[float, Provenance]:
    """Measured where torch has a fast int8 product; else estimated from the instruction set."""
    gops = peak_gops_int8()
    if gops > 1.5 * gflops:
        source = f"torch._int_mm, 768 x 768, one thread, best of {REPEATS}"
        return gops, Provenance("measured", source)
    speedup = max((INT8_SPEEDUP.get(feature, 1) for feature in isa), default=1)
    source = f"{speedup} x the measured fp32 peak, from the instruction set"
    return speedup * gflops, Provenance("estimated", source)


def _clock(gflops: float, isa: tuple[str, ...]) -> tuple[float, Provenance]:
    """The highest clock that the system reports; else the one the fp32 peak implies."""
    reported = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    mhz = max(reported.max, reported.current) if reported else 0.0
    if mhz > 0:
        return round(mhz / 1e3, 3), Provenance("measured", "reported by the operating system")
    flops_per_cycle = 64 if "avx512f" in isa else 32
    source = f"fp32 peak / {flops_per_cycle} operations per cycle; the system reports no clock"
    return round(gflops / flops_per_cycle, 3), Provenance("estimated", source)


def _fastest_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest of ``REPEATS`` runs on one thread; torch's threads are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work()
        return min(_seconds(work) for _ in range(REPEATS))
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cpuinfo(key: str) -> str:
    """The first value of a key in Linux's list of processors; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return ""


def _remember(file: Path, profile: Profile) -> None:
    try:
        write_text(file, profile_toml(profile))
    except InputError as error:
        log.warning("This machine's profile was not kept: %s", error)
