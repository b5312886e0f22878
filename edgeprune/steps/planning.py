"""Up to the plan: the stages that find it, one function each."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeprune import console, files
from edgeprune.budget import AbsoluteBudget, Budget
from edgeprune.candidates import SearchResult
from edgeprune.cluster import IN_PROCESS, Cluster
from edgeprune.cost import (
    CostTable,
    adapt,
    estimate_costs,
    measure_costs,
    shelf,
    vendor_costs,
)
from edgeprune.devices import (
    Device,
    Workload,
    read_measurement,
    write_measurement,
)
from edgeprune.errors import InputError
from edgeprune.formulate import Choices
from edgeprune.host import check_is_host
from edgeprune.importance import Damage, Evidence, measure_damage, rank_units
from edgeprune.importance.readers import LEAST_ROWS
from edgeprune.lower import Artifact, lower
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan
from edgeprune.profile import Profile, load_profile
from edgeprune.program import Program, capture
from edgeprune.search import Search
from edgeprune.settings import Settings
from edgeprune.sites import Sites, find_sites
from edgeprune.stages import Stages
from edgeprune.task import Batch, Task, blaming, check_task
from edgeprune.validate.timing import MB_PER_MIB

log = logging.getLogger(__name__)

# Damage is a ratio of sums over examples: 64 place it within a few percent, and every further
# one costs a forward pass per measured cut.
SCORED_EXAMPLES = 64
ROWS_PER_COLUMN = 4
MEASURED_WIDTHS = 8
MEASURED_TOKENS = 6
DENSE_ROUNDS = 50


@dataclass(frozen=True)
class Planned:
    """A build up to its plan: all that the later stages read."""

    profile: Profile
    budget: Budget
    calibration: tuple[Batch, ...]
    search: Search
    found: SearchResult
    dense: Artifact


def profile_stage(settings: Settings, device: Device | None) -> tuple[Profile, Budget, Lowering]:
    """The device, what is asked of it, and what files are made for."""
    profile = load_profile(settings.profile)
    if settings.device == "local" and settings.profile != "host":
        check_is_host(profile)
    if device is not None and device.title and profile.machine.lower() not in device.title.lower():
        raise InputError(
            f"device {device.name}: it is a {device.title}, profile {profile.name} is of a "
            f"{profile.title}. Make its own: edgeprune profiles make --device "
            f"{settings.device} --name NAME."
        )
    if settings.measured_on is None and settings.threads > 1:
        raise InputError(
            f"got {settings.threads} threads without a device; costs are estimated for 1 thread. "
            "Leave --threads out, or give --device."
        )
    budget = Budget.parse(settings.budget) if settings.budget else profile.budget
    lowering = profile.lowering.asked(**settings.asked_of_lowering)
    note = profile.lowering_note() if lowering.offload is None else None
    if note:
        console.say(f"  {note}")
    if lowering.offload is not None:
        _check_accelerator(settings, lowering)
    elif profile.estimated:
        console.say(f"  {profile.name}: speeds are not measured; every prediction is an estimate")
    lowering.check_packages()
    console.say(f"  {profile.title}, {lowering}, {budget}")
    return profile, budget, lowering


def _check_accelerator(settings: Settings, lowering: Lowering) -> None:
    """Say what can be known of a file that nothing here runs."""
    offload = lowering.offload
    assert offload is not None
    if not offload.selects:
        console.say(f"  {offload.title}: no tokens are selected, which it cannot run")
    if settings.measured_on is not None:
        raise InputError(
            f"--device {settings.measured_on}: got accelerator {lowering.accelerator}, whose files "
            "edgeprune runs nowhere. Leave --device out, or give --accelerator cpu."
        )
    if offload.estimates:
        console.say(f"  {offload.title}: costs are its compiler's estimates; nothing is measured")
    else:
        console.say(
            f"  {offload.title}: files are lowered, and neither run nor timed; costs are estimates "
            "of the CPU alone"
        )


def capture_stage(task: Task) -> tuple[Program, tuple[Batch, ...]]:
    """The program and the calibration batches."""
    calibration = check_task(task)
    with blaming(task, "model"):
        model = task.model()
    program = capture(
        model,
        task.example_inputs(),
        input_names=task.input_names,
        output_names=task.output_names,
        meta={"licence": task.licence, "preprocessing": task.preprocessing},
    )
    console.say(f"  {task.name}: {program.parameters / 1e6:.1f} M parameters ({task.licence})")
    return program, calibration


def sites_stage(program: Program, out: Path) -> Sites:
    """What can be cut, written to ``sites.json``."""
    sites = find_sites(program)
    sites.write(out / "sites.json")
    if not sites.cuttable:
        reasons = "; ".join(f"{s.name}: {s.why_not}" for s in sites.sites[:5]) or "no weights found"
        raise InputError(f"nothing in this model can be cut. {reasons}. See sites.json.")
    if not sites.parts:
        raise InputError(
            "no cut of this model has a price, so nothing can be chosen: got "
            f"{', '.join(s.name for s in sites.cuttable[:5])}, wanted a sub-layer x + f(x) or an "
            "exact width. `edgeprune apply` cuts these by a plan of your own; see sites.json."
        )
    counts: dict[str, int] = {}
    for site in sites.cuttable:
        counts[site.axis] = counts.get(site.axis, 0) + 1
    console.say("  " + ", ".join(f"{count} x {axis}" for axis, count in counts.items()))
    return sites


def score_stage(
    stages: Stages,
    sites: Sites,
    choices: tuple[Choices, ...],
    levels: tuple[int, ...],
    calibration: tuple[Batch, ...],
    settings: Settings,
    cluster: Cluster = IN_PROCESS,
    labels: Batch | None = None,
) -> Damage:
    """Every unit ranked, and the damage of every site measured alone."""
    batches = scored_examples(sites, calibration)
    labels = labels and labels[: len(batches)]
    widths = {
        site.name: _spread([o.units for o in options if 0 < o.units < site.units], MEASURED_WIDTHS)
        for site, options in ((choice.site, choice.options) for choice in choices)
        if site
    }
    tokens = _spread(levels[1:], MEASURED_TOKENS)
    key = (
        *(sites.program.fingerprint, batches_hash(batches), settings.criterion, widths, tokens),
        *((batches_hash((labels,)),) if labels else ()),
    )

    def measure() -> Damage:
        evidence = Evidence(sites, batches, settings.seed, labels)
        orders = rank_units(evidence, settings.criterion, widths)
        return measure_damage(evidence, orders, widths, tokens, cluster)

    return stages.keep(
        stages.path("damage", *key, settings.seed, suffix=".json"),
        measure,
        lambda damage, path: files.write_json(path, "damage", damage.to_json()),
        lambda path: Damage.from_json(files.read_json(path, "damage")),
    )


def cost_stage(
    sites: Sites,
    profile: Profile,
    lowering: Lowering,
    device: Device | None,
    levels: tuple[int, ...],
    settings: Settings,
) -> CostTable:
    """What every piece costs on the device, written to ``table.json``."""
    if settings.table:
        table = adapt(shelf.find(settings.table), sites, lowering, device, settings.seed)
    elif lowering.offload is not None and lowering.offload.estimates:
        console.say(f"  costs are estimated by the compiler of the {lowering.offload.title}")
        table = vendor_costs(sites, lowering, tokens=levels, seed=settings.seed)
    elif device is None:
        console.say("  no device at hand: costs are estimated from the profile")
        table = estimate_costs(sites, profile, lowering)
    else:
        table = measure_costs(sites, device, lowering, tokens=levels, seed=settings.seed)
    table.write(settings.out / "table.json")
    return table


def dense_stage(
    stages: Stages,
    sites: Sites,
    table: CostTable,
    lowering: Lowering,
    device: Device | None,
    budget: Budget,
    calibration: tuple[Batch, ...] = (),
) -> tuple[Artifact, AbsoluteBudget]:
    """The uncut model as a file, and the budget in numbers, given what that file costs."""
    program = sites.program
    path = stages.path("dense", program.fingerprint, vars(lowering), suffix=lowering.suffix)
    artifact = lower(program, path, lowering, calibration)
    say_fallbacks(artifact)
    if device is None:
        guess = table.predict(sites, Plan(program.fingerprint))
        costs = (guess.latency_ms, guess.peak_memory_mb, guess.size_mb)
        word = table.provenance
    else:
        workload = Workload("dense", path, example_of(program))
        # Kept, because the budget in numbers follows from it: a resumed build asks the same.
        found = stages.keep(
            stages.path("dense", program.fingerprint, vars(lowering), table.hash, suffix=".json"),
            lambda: device.measure_in_turns([workload], DENSE_ROUNDS, memory=True)["dense"],
            lambda measured, file: write_measurement(file, measured),
            read_measurement,
        )
        costs = (found.p50_ms, found.peak_memory_mb or 0.0, found.file_size_mb)
        word = "measured"
    # A share of the latency is solved for in the table's own milliseconds.
    bounds = budget.resolve(table.dense_ms, costs[1] * MB_PER_MIB, costs[2] * MB_PER_MIB)
    console.say(
        f"  dense, {word}: {costs[0]:.2f} ms, {costs[1] * MB_PER_MIB:.0f} MB of memory, "
        f"{costs[2] * MB_PER_MIB:.1f} MB file"
    )
    return artifact, bounds


def solve_stage(stages: Stages, search: Search, settings: Settings) -> SearchResult:
    """The plan, written to ``plan.json`` with its certificate."""
    open_ = [(c.name, [o.units for o in c.options], c.stream is not None) for c in search.choices]
    measured = (search.damage.to_json(), search.table.hash, search.task.content_hash())
    asked = (asdict(search.bounds), vars(search.lowering), search.solver, open_)
    trial = (search.trial_steps, search.trial_minutes, search.seed)
    found = stages.keep(
        stages.path("search", *measured, *asked, *trial, suffix=".json"),
        search.run,
        lambda result, path: files.write_json(path, "search", result.to_json()),
        lambda path: SearchResult.from_json(files.read_json(path, "search")),
    )
    write_plan(search, found, settings)
    return found


def write_plan(search: Search, found: SearchResult, settings: Settings) -> None:
    """``plan.json``: the chosen plan with its certificate."""
    chosen = found.chosen
    found.plan.write(
        settings.out / "plan.json",
        predicted={
            "latency_ms": chosen.predicted_ms,
            "damage": chosen.damage,
            "provenance": search.table.provenance,
        },
        certificate=asdict(chosen.certificate) | {"weights": dict(chosen.weights)},
    )
    word = search.table.provenance if chosen.measured_ms is None else "measured"
    console.say(f"  chosen: {chosen.measured_ms or chosen.predicted_ms:.2f} ms {word}")


def say_fallbacks(artifact: Artifact) -> None:
    """What an accelerator leaves to the CPU, and at what price; never silent."""
    if artifact.lowering.offload is None:
        return
    left = [row for row in artifact.delegation if not row.delegated]
    price = sum(float(row.assumed_ms or 0) for row in left)
    priced = f", assumed to take {price:.3g} ms there" if price else ""
    console.say(f"  {artifact.path.name}: {len(left)} operators stay on the CPU{priced}")
    for row in artifact.fallbacks:
        log.warning("%s falls back to the CPU: %s", row.node, row.why_not)


def scored_examples(sites: Sites, calibration: tuple[Batch, ...]) -> tuple[Batch, ...]:
    """The first batches that hold enough examples to rank units and measure damage on.

    A matrix with fewer than ``LEAST_ROWS`` rows per column is not refitted: it would fit them by
    heart, and cuts would look free.
    """
    columns_per_row = 0.0
    for reader in Evidence(sites, ()).readers.values():
        columns_per_row = max(columns_per_row, len(reader.unit_of) / reader.rows_per_example)
    wanted = max(SCORED_EXAMPLES, math.ceil(ROWS_PER_COLUMN * columns_per_row))
    taken: list[Batch] = []
    count = 0
    for batch in calibration:
        if count >= wanted:
            break
        taken.append(batch)
        count += len(batch[0])
    needed = math.ceil(LEAST_ROWS * columns_per_row)
    if count < needed:
        log.warning(
            "calibration gives %d examples, wanted %d: with fewer than %d the widest matrices are "
            "not refitted to what stays, and cuts look worse than they need to",
            *(count, wanted, needed),
        )
    return tuple(taken)


def batches_hash(batches: tuple[Batch, ...]) -> str:
    """Identifies calibration data without keeping it."""
    parts = [
        hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for b in batches for t in b
    ]
    return files.content_hash(parts)


def example_of(program: Program) -> Batch:
    """One example, as a lowered file takes it."""
    return tuple(each[:1] for each in program.example_inputs)


def _spread(levels: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the levels, evenly, both ends among them."""
    if len(levels) <= count:
        return list(levels)
    return [levels[round(i * (len(levels) - 1) / (count - 1))] for i in range(count)]
