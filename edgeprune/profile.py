"""What a device is: cores, clocks, memory, accelerator, and where each number is from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.budget import Budget
from edgeprune.errors import InputError
from edgeprune.files import check_version
from edgeprune.toml import Table, read_toml, toml_value

if TYPE_CHECKING:
    from edgeprune.lower.lowering import Lowering

ORIGINS = ("vendor", "estimated", "measured")
RUNTIMES = ("executorch", "litert")
DELEGATES = ("auto", "off")
PRECISIONS = ("int8", "fp16", "fp32")
# Those of edgeprune.lower.ACCELERATORS, said here without loading torch.
COMPILERS = ("ethos-u55-256", "ethos-u65-256", "vulkan", "coreml")


@dataclass(frozen=True)
class Provenance:
    """Where a number is from: ``vendor``, ``estimated`` or ``measured``, and the source."""

    origin: str
    source: str


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind.

    Attributes:
        name: "prime", "mid", "little"...
        core: the core's own name, as in "Arm Cortex-X3".
        isa: instruction set features that kernels care for, as in ("neon", "dotprod", "i8mm").
        cores: how many of them.
        clock_ghz: the highest clock.
        peak_gflops_fp32: of ONE core: clock x fused multiply-add lanes x pipes x 2.
        peak_gops_int8: of ONE core, likewise (a multiply-add counts as two).
    """

    name: str
    core: str
    isa: tuple[str, ...]
    cores: int
    clock_ghz: float
    peak_gflops_fp32: float
    peak_gops_int8: float


@dataclass(frozen=True)
class Accelerator:
    """An NPU, TPU or GPU beside the CPU.

    Attributes:
        usable: whether edgeprune can lower to it.
        compiler: one of ``COMPILERS``, which does; empty if none does.
    """

    name: str
    usable: bool
    compiler: str = ""


@dataclass(frozen=True)
class Multiples:
    """Widths the kernels like: kept heads, ffn neurons and tokens should be multiples of these."""

    heads: int
    ffn: int
    tokens: int


@dataclass(frozen=True)
class Profile:
    """One device.

    Attributes:
        machine: part of the name that the device gives itself, such as "Raspberry Pi 5": only
            there does ``--device local`` measure for it. Empty: any machine with its instructions.
        ram_mb: in 10**6 bytes, as sold or as the system reports.
        bandwidth_gbps: gigabytes (10**9 bytes) per second between memory and CPU, the peak;
            of the host: what a large copy reaches.
        provenance: one entry per number, by its path: "clusters.prime.clock_ghz",
            "memory.ram_mb", "multiples.ffn".
    """

    name: str
    title: str
    soc: str
    runtime: str
    delegate: str
    precision: str
    clusters: tuple[Cluster, ...]
    ram_mb: int
    bandwidth_gbps: float
    accelerator: Accelerator | None
    multiples: Multiples
    budget: Budget
    provenance: Mapping[str, Provenance] = field(hash=False)
    machine: str = ""

    @property
    def fastest(self) -> Cluster:
        """The cluster with the fastest single core: where a model should be pinned."""
        return max(self.clusters, key=lambda cluster: cluster.peak_gflops_fp32)

    @property
    def lowering(self) -> Lowering:
        """How files for it are made, if nothing else is asked for."""
        from edgeprune.lower.lowering import Lowering  # with torch, which few commands need

        usual = Lowering(self.precision, self.runtime, self.delegate, self.fastest.isa)  # type: ignore[arg-type]
        compiler = self.accelerator.compiler if self.accelerator else ""
        return usual.asked(accelerator=compiler) if compiler else usual

    @property
    def estimated(self) -> bool:
        """Whether predictions from this profile are estimates: a speed in it was not measured."""
        speeds = [f"clusters.{self.fastest.name}.peak_gflops_fp32", "memory.bandwidth_gbps"]
        return any(self.provenance[path].origin != "measured" for path in speeds)

    def lowering_note(self) -> str | None:
        """One line for the user when the accelerator has to be left idle, else None."""
        if self.accelerator is None or self.accelerator.usable:
            return None
        where = f"{self.fastest.core}, {self.precision}"
        return (
            f"{self.name}: the {self.accelerator.name} cannot be lowered to yet; "
            f"using {self.runtime} + XNNPACK on the CPU ({where})"
        )


def list_profiles() -> list[str]:
    """Names that ``load_profile`` knows: "host", then the built-in devices."""
    return ["host", *sorted(path.stem for path in _folder().glob("*.toml"))]


def load_profile(name_or_path: str | Path) -> Profile:
    """A profile by built-in name, "host" (probed once, then cached), or path of a TOML file.

    Args:
        name_or_path: a path contains a slash or ends in ``.toml``.

    Raises:
        InputError: no such profile (with the nearest names), or a file that is malformed.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(".toml") or isinstance(name_or_path, Path):
        return read_profile(name_or_path)
    if text == "host":
        from edgeprune.host import probe_host  # here, because it needs this module and torch

        return probe_host()
    names = list_profiles()
    if text in names:
        return read_profile(_folder() / f"{text}.toml")
    close = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise InputError(
        f"there is no profile '{text}'. {hint}Known: {', '.join(names)}; "
        "or give the path of your own .toml file."
    )


def read_profile(path: str | Path) -> Profile:
    """Read and check one profile file.

    Raises:
        InputError: unreadable, malformed, from a future version, an unknown or missing key, or a
            wrong value; file and line are named.
    """
    top = read_toml(path)
    check_version(top.file, top.values.get("version"))
    top.only(_TOP_KEYS)
    notes: dict[str, Provenance] = {}
    clusters = tuple(_cluster(table, notes) for table in top.tables("clusters"))
    names = [cluster.name for cluster in clusters]
    for table in top.tables("clusters"):
        if names.count(table.text("name")) > 1:
            raise table.error("name", f'"{table.text("name")}" names two clusters.')
    memory = top.table("memory").only(("ram_mb", "bandwidth_gbps"))
    multiples = top.table("multiples").only(("heads", "ffn", "tokens"))
    return Profile(
        name=top.text("name"),
        title=top.text("title"),
        soc=top.text("soc"),
        runtime=top.text("runtime", among=RUNTIMES),
        delegate=top.text("delegate", among=DELEGATES),
        precision=top.text("precision", among=PRECISIONS),
        clusters=clusters,
        ram_mb=_whole(memory, "ram_mb", notes),
        bandwidth_gbps=_number(memory, "bandwidth_gbps", notes),
        accelerator=_accelerator(top.table("accelerator")) if "accelerator" in top else None,
        multiples=Multiples(
            _whole(multiples, "heads", notes),
            _whole(multiples, "ffn", notes),
            _whole(multiples, "tokens", notes),
        ),
        budget=_budget(top),
        provenance=notes,
        machine=top.text("machine") if "machine" in top else "",
    )


def profile_toml(profile: Profile) -> str:
    """The file that ``read_profile`` reads back as the same profile."""
    named = {key: getattr(profile, key) for key in ("name", "title", "soc", *_LOWERING_KEYS)}
    named |= {"machine": profile.machine} if profile.machine else {}
    lines = ["version = 1", *(f"{key} = {toml_value(value)}" for key, value in named.items())]
    for cluster in profile.clusters:
        lines += ["", "[[clusters]]"]
        lines += [f"name = {toml_value(cluster.name)}", f"core = {toml_value(cluster.core)}"]
        lines.append(f"isa = [{', '.join(map(toml_value, cluster.isa))}]")
        lines += _figures(profile, f"clusters.{cluster.name}", cluster, _CLUSTER_FIGURES)
    lines += ["", "[memory]", *_figures(profile, "memory", profile, ("ram_mb", "bandwidth_gbps"))]
    if profile.accelerator is not None:
        lines += ["", "[accelerator]", f"name = {toml_value(profile.accelerator.name)}"]
        lines.append(f"usable = {toml_value(profile.accelerator.usable)}")
        if profile.accelerator.compiler:
            lines.append(f"compiler = {toml_value(profile.accelerator.compiler)}")
    lines += ["", "[multiples]"]
    lines += _figures(profile, "multiples", profile.multiples, ("heads", "ffn", "tokens"))
    lines += ["", "[budget]"]
    for part in str(profile.budget).split(","):
        key, _, value = part.partition("=")
        lines.append(f"{key} = {value if key == 'score' else toml_value(value)}")
    return "\n".join(lines) + "\n"


_LOWERING_KEYS = ("runtime", "delegate", "precision")
_CLUSTER_FIGURES = ("cores", "clock_ghz", "peak_gflops_fp32", "peak_gops_int8")
_TOP_KEYS = (
    *("version", "name", "title", "soc", "machine", *_LOWERING_KEYS),
    *("clusters", "memory", "accelerator", "multiples", "budget"),
)


def _cluster(table: Table, notes: dict[str, Provenance]) -> Cluster:
    table.only(("name", "core", "isa", *_CLUSTER_FIGURES))
    name = table.text("name")
    place = f"clusters.{name}"
    return Cluster(
        name=name,
        core=table.text("core"),
        isa=table.texts("isa"),
        cores=_whole(table, "cores", notes, place),
        clock_ghz=_number(table, "clock_ghz", notes, place),
        peak_gflops_fp32=_number(table, "peak_gflops_fp32", notes, place),
        peak_gops_int8=_number(table, "peak_gops_int8", notes, place),
    )


def _accelerator(table: Table) -> Accelerator:
    table.only(("name", "usable", "compiler"))
    usable = table.flag("usable")
    if not usable and "compiler" in table:
        raise table.error("usable", "got false beside a compiler, wanted true.")
    compiler = table.text("compiler", among=COMPILERS) if usable else ""
    return Accelerator(table.text("name"), usable, compiler)


def _budget(top: Table) -> Budget:
    table = top.table("budget")
    try:
        return Budget.from_table(table.values)
    except InputError as error:
        raise table.error(None, str(error)) from error


def _number(
    table: Table, key: str, notes: dict[str, Provenance], place: str | None = None
) -> float:
    return _figure(table, key, notes, place).number("value")


def _whole(table: Table, key: str, notes: dict[str, Provenance], place: str | None = None) -> int:
    return _figure(table, key, notes, place).whole("value", least=1)


def _figure(table: Table, key: str, notes: dict[str, Provenance], place: str | None) -> Table:
    """``key = { value = 2.91, from = "vendor", source = "..." }``; its origin goes into notes."""
    figure = table.table(key).only(("value", "from", "source"))
    path = f"{place or table.path[-1]}.{key}"
    notes[path] = Provenance(figure.text("from", among=ORIGINS), figure.text("source"))
    return figure


def _figures(profile: Profile, place: str, owner: object, keys: Iterable[str]) -> list[str]:
    lines = []
    for key in keys:
        note = profile.provenance[f"{place}.{key}"]
        origin, source = toml_value(note.origin), toml_value(note.source)
        value = getattr(owner, key)
        lines.append(f"{key} = {{ value = {value!r}, from = {origin}, source = {source} }}")
    return lines


def _folder() -> Path:
    """Where the built-in profiles lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_profiles"
    return installed if installed.is_dir() else package.parent / "profiles"
