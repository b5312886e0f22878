"""What a plan at 60% of the latency loses, against uniform and random plans just as fast.

EfficientNet-lite0 with ImageNet weights under a frozen linear probe on pictures of emoji, or the
vision transformer on digits. The solved plan is the one that a build chooses; the others are
brought to the latency by measuring, in turns with the dense file. All get the same recovery. Scores
are of the lowered files, per example, so that their differences have paired intervals. The uniform
plan keeps the same share of every width, the units that the solved one would keep: what is left
between the two is the choice of where to cut.
Results are kept in a folder as they come, so that a stopped comparison goes on.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
from _bench import claim, emit
from _emoji import EmojiEfficientNet
from compare_plans import Bench, brought_to, random

from edgeprune import console, files
from edgeprune.budget import Budget
from edgeprune.devices import connect
from edgeprune.formulate import choices_of, token_levels
from edgeprune.lower import Lowering
from edgeprune.plan import Plan
from edgeprune.profile import load_profile
from edgeprune.search import Search
from edgeprune.settings import Settings
from edgeprune.stages import Stages
from edgeprune.steps import (
    capture_stage,
    cost_stage,
    dense_stage,
    example_of,
    recover_stage,
    score_stage,
    scored_examples,
    sites_stage,
)
from edgeprune.task import Task
from edgeprune.tasks.digits_vit import DigitsVit

TASKS: dict[str, Callable[[], Task]] = {
    "emoji-efficientnet": EmojiEfficientNet,
    "digits-vit": DigitsVit,
}
BUDGET = "latency=60%"
PLANS = ("solved", "uniform", "random")
# Training batches between two seeds, more than a recovery takes.
APART = 1000
# Half of a 95% interval, in standard errors.
CONFIDENCE = 1.96


@dataclass(frozen=True)
class Row:
    """One recovered plan: its latency over the dense one's, and whether each example is right."""

    plan: str
    seed: int
    latency_ratio: float
    hits: tuple[float, ...]


def uniform(bench: Bench) -> Plan:
    """The same share of every width, to the nearest number that the solver may choose."""
    search = bench.search

    def plan(ratio: float) -> Plan:
        kept = {}
        for choice in search.choices:
            site = choice.site
            options = [option.units for option in choice.options if option.units]
            if site is None or len(options) < 2:
                continue
            units = min(options, key=lambda count, all_=site.units: abs(count - ratio * all_))
            if units < site.units:
                kept[site.name] = search.damage.best(site.name, units)
        return Plan(search.sites.program.fingerprint, kept)

    return brought_to(bench, "uniform", plan)


def hits(bench: Bench, path: Path) -> tuple[float, ...]:
    """Per example of the split, whether a file is right."""
    read = bench.task.evaluate if bench.split == "test" else bench.task.validate
    with bench.device.predictor(path) as run:
        return tuple(np.asarray(read(run), dtype=float).tolist())


def seeded(task: Task, seed: int) -> Task:
    """The task with its endless training batches from another point on."""
    found = copy.copy(task)
    found.train_batches = lambda: islice(task.train_batches(), seed * APART, None)  # type: ignore[method-assign]
    return found


def row(bench: Bench, name: str, seed: int, plan: Callable[[], Plan]) -> Row:
    """One plan, recovered with a seed, lowered, timed and scored."""
    task, told = seeded(bench.task, seed), replace(bench.settings, seed=seed)
    program, _ = recover_stage(
        bench.stages, bench.search.sites, plan(), task, bench.calibration, told
    )
    path = bench.lowered(f"{name}-{seed}", program)
    return Row(name, seed, bench.share(path, example_of(program)), hits(bench, path))


def rows(bench: Bench, keep: Path, seeds: int) -> Iterator[Row]:
    """The dense file, and every plan with every seed, each kept once it is there."""
    search = bench.search
    assert search.dense is not None
    yield Row("dense", 0, 1.0, hits(bench, search.dense))
    asked = (vars(search.lowering), bench.split, bench.settings.recover_steps)
    key = (search.damage.to_json(), search.table.hash, search.task.content_hash(), *asked)
    once = {
        "solved": cache(lambda: search.run().plan),
        "uniform": cache(partial(uniform, bench)),
    }
    for seed in range(seeds):
        plans = once | {"random": partial(random, bench, seed)}
        stages = Stages(keep / f"seed-{seed}", tuple(f"{name} {seed}" for name in PLANS))
        seeded = replace(bench, stages=stages, search=replace(search, folder=stages.folder))
        for name in PLANS:
            with stages.stage(f"{name} {seed}"):
                yield stages.keep(
                    stages.path(f"row-{name}", *key, suffix=".json"),
                    partial(row, seeded, name, seed, plans[name]),
                    lambda found, path: files.write_json(path, "row", {"row": vars(found)}),
                    lambda path: Row(**files.read_json(path, "row")["row"]),
                )


def claims(found: list[Row]) -> list[dict[str, Any]]:
    """Points lost, and points above uniform and random, each with half of its 95% interval."""
    mean = {
        name: np.mean([each.hits for each in found if each.plan == name], axis=0)
        for name in ("dense", *PLANS)
    }
    differences = {
        "points_lost": mean["dense"] - mean["solved"],
        "above_uniform": mean["solved"] - mean["uniform"],
        "above_random": mean["solved"] - mean["random"],
    }
    result = [claim("dense_score", 100 * float(mean["dense"].mean()), "%", len(mean["dense"]))]
    for name, each in differences.items():
        half = CONFIDENCE * float(each.std(ddof=1)) / len(each) ** 0.5
        result.append(claim(name, 100 * float(each.mean()), "points", len(each)))
        result.append(claim(f"{name}_half_interval", 100 * half, "points", len(each)))
    for name in PLANS:
        ratios = [each.latency_ratio for each in found if each.plan == name]
        result.append(claim(f"{name}_latency_ratio", float(np.mean(ratios)), "", len(ratios)))
    return result


def prepared(task: Task, settings: Settings, device: Any, quick: bool) -> Bench:
    """All stages up to the solver's question."""
    lowering, profile = Lowering(settings.precision or "fp32"), load_profile("host")
    budget = Budget.parse(BUDGET)
    assert budget.latency is not None
    stages = Stages(settings.out, ("score", "cost"))
    program, calibration = capture_stage(task)
    sites = sites_stage(program, settings.out)
    choices, levels = choices_of(sites, profile.multiples), token_levels(sites, profile.multiples)
    with stages.stage("score"):
        damage = score_stage(stages, sites, choices, levels, calibration, settings)
    with stages.stage("cost"):
        table = cost_stage(sites, profile, lowering, device, levels, settings)
        dense, bounds = dense_stage(stages, sites, table, lowering, device, budget)
    search = Search(
        *(sites, choices, levels, damage, table, bounds, task),
        calibration=scored_examples(sites, calibration),
        lowering=lowering,
        device=device,
        dense=dense.path,
        folder=stages.folder,
        trial_steps=settings.trial_steps,
        seed=settings.seed,
    )
    split = "validation" if quick else "test"
    return Bench(task, search, stages, settings, calibration, split, budget.latency.value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=tuple(TASKS), default="digits-vit")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="fp32")
    parser.add_argument("--steps", type=int, default=800, help="of distillation, for each plan")
    parser.add_argument("--seeds", type=int, default=3, help="of recovery and of random plans")
    parser.add_argument("--keep", type=Path, default=Path("build/accuracy"))
    parser.add_argument(
        "--quick", action="store_true", help="validation split, one seed, no distillation"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console.configure(as_json=options.json)
    settings = Settings(
        profile="host",
        budget=BUDGET,
        out=options.keep / options.task,
        precision=options.precision,
        recover_minutes=0.0,
        recover_steps=None if options.quick else options.steps,
    )
    task = TASKS[options.task]()
    with connect("local") as device:
        bench = prepared(task, settings, device, options.quick)
        found = list(rows(bench, settings.out, 1 if options.quick else options.seeds))
    shown = [{**vars(each), "hits": f"{100 * float(np.mean(each.hits)):.2f}%"} for each in found]
    title = f"{task.name}, {bench.search.lowering}, {BUDGET}, {bench.split} split"
    emit(title, shown, claims(found), options.json)


if __name__ == "__main__":
    main()
