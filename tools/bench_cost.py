"""How well the cost table predicts whole pruned models: latency and peak memory.

Seeded random plans over depth, width and length, one for each of as many equal steps from 30 to
95% of the dense latency (placed by prediction), none of them used to fit the table. Each is cut,
lowered and timed in turns with the dense model; a measured latency is the ratio of medians times
the table's dense latency, so that the machine's drift since the table was made does not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _bench import claim, emit

from edgeprune import console
from edgeprune.cost import CostTable, measure_costs, random_plan
from edgeprune.cost.samples import fastest_ms, measure_calmly
from edgeprune.devices import Device, Measurement, Workload, connect
from edgeprune.formulate import token_levels
from edgeprune.lower import RUNTIMES, Lowering, lower_graph
from edgeprune.plan import Plan
from edgeprune.profile import load_profile
from edgeprune.program.capture import capture
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply
from edgeprune.task import load_task

LEAST, MOST = 0.30, 0.95
TASKS = ("minilm-20news", "digits-vit")
BATCH, ROUNDS = 5, 60
SEED = 20_000
TRIES = 20_000


def spread_plans(sites: Sites, table: CostTable, count: int) -> list[Plan]:
    """One random plan for each of ``count`` equal steps of predicted latency."""
    rng = np.random.default_rng(SEED)
    dense = table.predict(sites, Plan(sites.program.fingerprint)).latency_ms
    found: dict[int, Plan] = {}
    for _ in range(TRIES):
        plan = random_plan(sites, rng, rng.uniform(0.0, 1.0))
        share = table.predict(sites, plan).latency_ms / dense
        place = int(count * (share - LEAST) / (MOST - LEAST))
        if LEAST <= share < MOST:
            found.setdefault(place, plan)
        if len(found) == count:
            break
    return [found[place] for place in sorted(found)]


def measured(
    sites: Sites, plans: Sequence[Plan], device: Device, lowering: Lowering
) -> list[tuple[Measurement, Measurement]]:
    """(plan, dense in the same batch), plan by plan."""
    inputs = tuple(each[:1].contiguous() for each in sites.program.example_inputs)
    # Shuffled, so that drift within the run does not line up with latency.
    order = np.random.default_rng(SEED).permutation(len(plans)).tolist()
    with (
        tempfile.TemporaryDirectory(prefix="edgeprune-") as name,
        console.progress("measuring plans", len(plans), "plans") as advance,
    ):
        folder = Path(name)

        def workload(label: str, plan: Plan) -> Workload:
            path = folder / f"{label}.pte"
            slim = apply(sites.program, plan, sites)
            path.write_bytes(lower_graph(slim.module, inputs, lowering).data)
            return Workload(label, path, inputs)

        dense = workload("dense", Plan(sites.program.fingerprint))
        found: dict[int, tuple[Measurement, Measurement]] = {}
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            loads = [workload(str(number), plans[number]) for number in numbers]
            timed = measure_calmly(device, [dense, *loads], ROUNDS)
            for number, load in zip(numbers, loads, strict=True):
                alone = device.measure(load.path, load.inputs, 1, seconds=0, memory=True)
                found[number] = (
                    replace(timed[load.name], peak_memory_mb=alone.peak_memory_mb),
                    timed["dense"],
                )
                load.path.unlink()
                advance(1)
    return [found[number] for number in range(len(plans))]


def rows_of(
    sites: Sites,
    table: CostTable,
    plans: Sequence[Plan],
    results: Sequence[tuple[Measurement, Measurement]],
) -> list[dict[str, Any]]:
    """Predicted against measured, plan by plan."""
    rows = []
    for number, (plan, (found, dense)) in enumerate(zip(plans, results, strict=True)):
        guess = table.predict(sites, plan)
        share = found.p50_ms / dense.p50_ms
        fastest = fastest_ms(found.samples_ms) / fastest_ms(dense.samples_ms)
        peak = found.peak_memory_mb or 0.0
        rows.append(
            {
                "plan": number,
                "share_pct": round(100 * share, 1),
                "predicted_ms": guess.latency_ms,
                "measured_ms": share * table.dense_ms,
                "error_pct": 100 * (guess.latency_ms / (share * table.dense_ms) - 1),
                "fastest_error_pct": 100 * (guess.latency_ms / (fastest * table.dense_ms) - 1),
                "predicted_mb": guess.peak_memory_mb,
                "measured_mb": peak,
                "memory_error_pct": 100 * (guess.peak_memory_mb / peak - 1),
                "removed": sum(not units for units in plan.kept.values()),
                "widths": sum(bool(units) for units in plan.kept.values()),
                "tokens": " ".join(str(keep) for keep in plan.tokens.values()),
                "cv_pct": 100 * found.cv,
            }
        )
    return rows


def claims_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and worst of the absolute errors."""
    claims = []
    for prefix, key in (("", "error_pct"), ("memory_", "memory_error_pct")):
        errors = [abs(row[key]) for row in rows]
        claims.append(claim(f"{prefix}mape_pct", statistics.mean(errors), "%", len(errors)))
        claims.append(claim(f"{prefix}worst_pct", max(errors), "%", len(errors)))
    fastest = [abs(row["fastest_error_pct"]) for row in rows]
    return [
        *claims,
        claim("mape_of_fastest_runs_pct", statistics.mean(fastest), "%", len(fastest)),
        claim("worst_of_fastest_runs_pct", max(fastest), "%", len(fastest)),
        claim("plans", len(rows), "plans", len(rows)),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="12 plans instead of 52")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--runtime", choices=tuple(RUNTIMES), default="executorch")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    arguments = parser.parse_args()
    console.configure(as_json=arguments.json)
    lowering = Lowering(arguments.precision, arguments.runtime)
    task = load_task(arguments.task)
    sites = find_sites(capture(task.model(), task.example_inputs()))
    levels = token_levels(sites, load_profile("host").multiples)  # the table that a build makes
    with connect("local") as device:
        table = measure_costs(sites, device, lowering, tokens=levels)
        plans = spread_plans(sites, table, 12 if arguments.quick else 52)
        results = measured(sites, plans, device, lowering)
    rows = rows_of(sites, table, plans, results)
    title = f"Cost table, {arguments.task}, {lowering}, one thread"
    emit(title, rows, claims_of(rows), arguments.json)


if __name__ == "__main__":
    main()
