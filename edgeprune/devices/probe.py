"""The profile of a device, measured there: each of its clusters, and its memory."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune import console
from edgeprune.budget import Budget
from edgeprune.devices.facts import Core, Facts
from edgeprune.devices.folder import Folder
from edgeprune.devices.keeper import probe
from edgeprune.devices.transport import Transport
from edgeprune.errors import DeviceError
from edgeprune.host import INT8_SPEEDUP
from edgeprune.profile import Cluster, Multiples, Profile, Provenance

LIMIT_S = 120.0
# Far larger than caches, and small for a device's memory.
COPIED_MIB, MEMORY_SHARE = 256, 16
FLOPS_PER_CYCLE = {"avx512f": 64, "avx2": 32, "neon": 16}
"""Two pipes; a Cortex-X has four, and a system that reports its clocks."""


@dataclass(frozen=True)
class Speeds:
    """Of one processor, in thousand millions a second; int8 is 0 where it has no instructions."""

    gflops_fp32: float
    gops_int8: float
    gbps: float


def probe_device(transport: Transport, facts: Facts, name: str) -> Profile:
    """A profile of the device, measured there in some seconds.

    Raises:
        DeviceError: it is busy, or gone.
    """
    program = probe(transport.target, facts.clusters[0][0].isa)
    mib = min(COPIED_MIB, facts.ram_mb // MEMORY_SHARE)
    speeds = []
    with (
        Folder(transport) as folder,
        console.progress(f"measuring {transport.name}", len(facts.clusters)) as advance,
    ):
        folder.put(program, "session/probe", "probe")
        for cores in facts.clusters:
            words = ["./probe", str(cores[-1].number), str(mib)]
            stage = f"{transport.name}: probe processor {cores[-1].number}"
            said = folder.run(words, LIMIT_S).checked(stage).decode().split()
            if len(said) != 3:
                raise DeviceError(f"{stage}: got {said}, wanted three speeds")
            speeds.append(Speeds(*map(float, said)))
            advance(note=f"{speeds[-1].gflops_fp32:.0f} GFLOP/s fp32")
    return _profile(name, facts, speeds)


def _profile(name: str, facts: Facts, speeds: list[Speeds]) -> Profile:
    told = Provenance("measured", "reported by the operating system")
    notes: dict[str, Provenance] = {}
    clusters = []
    for number, (cores, speed) in enumerate(zip(facts.clusters, speeds, strict=True)):
        clusters.append(_cluster(f"cpu{number}", cores, speed, facts, notes))
    isa = clusters[0].isa
    columns = 32 if "avx512f" in isa else 16 if "avx2" in isa else 8
    kernels = "columns of XNNPACK's f32 GEMM kernel for this instruction set"
    chosen = Provenance("estimated", "whole heads; XNNPACK's row tiles divide 8")
    notes |= {
        "memory.ram_mb": told,
        "memory.bandwidth_gbps": _measured(facts, "a large copy, reads plus writes"),
        "multiples.heads": chosen,
        "multiples.ffn": Provenance("vendor", kernels),
        "multiples.tokens": chosen,
    }
    return Profile(
        name=name,
        title=facts.title,
        soc=facts.soc,
        machine=facts.title,
        runtime="executorch",
        delegate="auto",
        precision="int8",
        clusters=tuple(clusters),
        ram_mb=facts.ram_mb,
        bandwidth_gbps=round(max(each.gbps for each in speeds), 1),
        accelerator=None,
        multiples=Multiples(heads=1, ffn=columns, tokens=8),
        budget=Budget.parse("latency=60%"),
        provenance=notes,
    )


def _cluster(
    name: str,
    cores: tuple[Core, ...],
    speed: Speeds,
    facts: Facts,
    notes: dict[str, Provenance],
) -> Cluster:
    first = cores[0]
    what = "multiply-adds in registers"
    place = f"clusters.{name}"
    notes[f"{place}.cores"] = Provenance("measured", "reported by the operating system")
    notes[f"{place}.peak_gflops_fp32"] = _measured(facts, what)
    notes[f"{place}.peak_gops_int8"] = _measured(facts, what)
    gops = speed.gops_int8
    if not gops:
        times = max((INT8_SPEEDUP.get(each, 1) for each in first.isa), default=1)
        gops = times * speed.gflops_fp32
        source = f"{times} x the measured fp32 peak, from the instruction set"
        notes[f"{place}.peak_gops_int8"] = Provenance("estimated", source)
    if first.max_mhz:
        clock_ghz = first.max_mhz / 1e3
        notes[f"{place}.clock_ghz"] = Provenance("measured", "reported by the operating system")
    else:
        cycle = next((FLOPS_PER_CYCLE[each] for each in FLOPS_PER_CYCLE if each in first.isa), 8)
        clock_ghz = speed.gflops_fp32 / cycle
        source = f"fp32 peak / {cycle} operations per cycle; the system reports no clock"
        notes[f"{place}.clock_ghz"] = Provenance("estimated", source)
    return Cluster(
        name,
        first.model,
        first.isa,
        len(cores),
        max(0.001, round(clock_ghz, 3)),
        round(speed.gflops_fp32, 1),
        round(gops, 1),
    )


def _measured(facts: Facts, what: str) -> Provenance:
    if facts.emulated:
        return Provenance("estimated", f"{what}, emulated {facts.emulated}: not its speed")
    return Provenance("measured", f"{what}, one thread, best of 12")
