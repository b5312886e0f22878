"""Does the joint plan beat what one would do without it, at the same measured latency?

Joint depth x width x length against each axis alone, a uniform keep ratio (units by magnitude),
random plans, and the dense model on truncated input. Every plan is brought to the budget by
measuring, in turns with the dense file. Scores are of the eager programs on the test split:
as cut, after the least-squares refit, and after distillation with the same minutes for each.
Results are kept in a folder as they come, so that a stopped comparison goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from _bench import claim, emit

from edgeprune import console, files
from edgeprune.budget import Budget
from edgeprune.build import (
    SCORED_EXAMPLES,
    Settings,
    capture_stage,
    cost_stage,
    dense_stage,
    example_of,
    first_examples,
    recover_stage,
    score_stage,
)
from edgeprune.cost import random_plan
from edgeprune.devices import Device, Workload, connect
from edgeprune.formulate import AXES, choices_of, token_levels
from edgeprune.importance import Evidence, rank_units
from edgeprune.lower import lower
from edgeprune.plan import Plan
from edgeprune.profile import load_profile
from edgeprune.program import Program, capture
from edgeprune.search import Search
from edgeprune.sites import find_sites
from edgeprune.stages import Stages
from edgeprune.surgery import apply
from edgeprune.task import Batch, Predict, Task, cosines, load_task, predict_all
from edgeprune.tasks.minilm_20news import truncated

ROUNDS = 40
# A plan counts as being of the budget's latency within this much of it.
NEAR = 0.02
TRIES = 8


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    task: Task
    search: Search
    stages: Stages
    settings: Settings
    calibration: tuple[Batch, ...]
    split: str

    @property
    def device(self) -> Device:
        """The device everything is measured on."""
        assert self.search.device is not None
        return self.search.device

    def share(self, name: str, program: Program) -> float:
        """Measured median latency over the dense file's, in turns."""
        path = self.stages.folder / f"{name}.pte"
        lower(program, path, self.search.precision)
        assert self.search.dense is not None
        loads = [
            Workload("dense", self.search.dense, example_of(self.search.sites.program)),
            Workload("plan", path, example_of(program)),
        ]
        found = self.device.measure(loads, rounds=ROUNDS)
        return float(np.median(np.divide(found["plan"].samples_ms, found["dense"].samples_ms)))

    def scored(self, predict: Predict) -> float:
        """The score of a model on the split, as a mean."""
        read = self.task.evaluate if self.split == "test" else self.task.validate
        with torch.inference_mode():
            score = read(predict)
        assert score is not None
        return float(np.mean(score))

    def cosine(self, predict: Predict) -> float:
        """Mean cosine to the dense outputs on the calibration batches."""
        inputs = tuple(torch.cat(column) for column in zip(*self.calibration, strict=True))
        dense = predict_all(lambda batch: self.search.sites.program(*batch), inputs)
        return float(cosines(predict_all(predict, inputs), dense).mean())


def joint(bench: Bench, axes: tuple[str, ...], goal: float) -> Plan:
    """The search's choice with only some axes open."""
    multiples = load_profile(bench.settings.profile).multiples
    found = replace(bench.search, choices=choices_of(bench.search.sites, multiples, axes)).run()
    return found.plan


def uniform(bench: Bench, goal: float) -> Plan:
    """The same keep ratio in every width site, units by magnitude, brought to the latency."""
    sites = bench.search.sites
    orders = rank_units(Evidence(sites, bench.search.calibration), "l1")

    def plan(ratio: float) -> Plan:
        kept = {
            name: tuple(sorted(order[: max(1, round(ratio * len(order)))]))
            for name, order in orders.items()
        }
        return Plan(sites.program.fingerprint, kept)

    return brought_to(bench, "uniform", plan, goal)


def random(bench: Bench, seed: int, goal: float) -> Plan:
    """A random plan over all axes, brought to the latency by its share of everything."""
    sites = bench.search.sites

    def plan(share: float) -> Plan:
        return random_plan(sites, np.random.default_rng([seed, 7]), share)

    return brought_to(bench, f"random-{seed}", plan, goal)


def brought_to(bench: Bench, name: str, plan: Callable[[float], Plan], goal: float) -> Plan:
    """The plan of a one-parameter family nearest to the latency share, by bisection."""
    low, high = 0.02, 1.0
    best: tuple[float, Plan] | None = None
    for _ in range(TRIES):
        middle = (low + high) / 2
        tried = plan(middle)
        share = bench.share(name, apply(bench.search.sites.program, tried, bench.search.sites))
        if best is None or abs(share - goal) < abs(best[0] - goal):
            best = (share, tried)
        if abs(share - goal) <= NEAR * goal:
            break
        low, high = (low, middle) if share > goal else (middle, high)
    assert best is not None
    return best[1]


def row(bench: Bench, name: str, plan: Plan) -> dict[str, Any]:
    """One plan: its measured latency, and its score as cut, refitted and distilled."""
    sites = bench.search.sites
    cut = apply(sites.program, plan, sites)
    refitted, _ = recover_stage(
        bench.stages,
        sites,
        plan,
        bench.task,
        bench.calibration,
        replace(bench.settings, recover_minutes=0.0),
    )
    result = {
        "plan": name,
        "latency_ratio": bench.share(name, cut),
        "cut": bench.scored(lambda batch: cut(*batch)),
        "refitted": bench.scored(lambda batch: refitted(*batch)),
        "cosine_refitted": bench.cosine(lambda batch: refitted(*batch)),
    }
    if bench.settings.recover_minutes:
        slim, _ = recover_stage(
            bench.stages, sites, plan, bench.task, bench.calibration, bench.settings
        )
        result["distilled"] = bench.scored(lambda batch: slim(*batch))
        result["cosine_distilled"] = bench.cosine(lambda batch: slim(*batch))
    return result


def truncation(bench: Bench, goal: float) -> dict[str, Any]:
    """The dense model on as many tokens as fit into the latency."""
    full = bench.search.sites.program.example_inputs[0].shape[1]
    low, high = 1, full
    best = (0.0, 1)
    while high - low > 1:
        tokens = (low + high) // 2
        examples = truncated(bench.task.example_inputs(), tokens)
        share = bench.share("truncated", capture(bench.task.model(), examples))
        if share <= goal:
            low, best = tokens, (share, tokens)
        else:
            high = tokens
    share, tokens = best
    program = bench.search.sites.program

    def predict(batch: Batch) -> Any:
        ids, mask = truncated(batch, tokens)
        padded = (torch.nn.functional.pad(each, (0, full - tokens)) for each in (ids, mask))
        return program(*padded)

    score = bench.scored(predict)
    return {
        "plan": f"dense on {tokens} tokens",
        "latency_ratio": share,
        "cut": score,
        "refitted": score,
        "distilled": score,
        "cosine_refitted": bench.cosine(predict),
    }


def rows(bench: Bench, goal: float, seeds: int) -> Iterator[dict[str, Any]]:
    """All rows, each kept in the folder once it is there."""
    plans: dict[str, Callable[[], Plan]] = {
        "joint": lambda: joint(bench, AXES, goal),
        "width only": lambda: joint(bench, ("width",), goal),
        "depth only": lambda: joint(bench, ("depth",), goal),
        "length only": lambda: joint(bench, ("length",), goal),
        "uniform": lambda: uniform(bench, goal),
    }
    for seed in range(seeds):
        plans[f"random {seed}"] = lambda seed=seed: random(bench, seed, goal)  # type: ignore[misc]
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "dense": lambda: {"plan": "dense", "latency_ratio": 1.0} | _dense(bench),
        **{name: lambda name=name: row(bench, name, plans[name]()) for name in plans},  # type: ignore[misc]
    }
    if bench.task.name == "minilm-20news":
        makers["truncated"] = lambda: truncation(bench, goal)
    key = (bench.search.damage.to_json(), goal, bench.split, bench.settings.recover_minutes)
    for name, make in makers.items():
        console.say(f"{name}:")
        with bench.stages.stage(name):
            yield bench.stages.keep(
                bench.stages.path("row", name, *key, suffix=".json"),
                make,
                lambda found, path: files.write_json(path, "row", found),
                lambda path: {
                    k: v
                    for k, v in files.read_json(path, "row").items()
                    if k not in ("format", "version")
                },
            )


def _dense(bench: Bench) -> dict[str, Any]:
    score = bench.scored(lambda batch: bench.search.sites.program(*batch))
    return {"cut": score, "refitted": score, "distilled": score, "cosine_refitted": 1.0}


def claims(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The numbers that the comparison stands for."""
    by_name = {each["plan"]: each for each in found}
    random_rows = [each for name, each in by_name.items() if name.startswith("random")]
    single = [by_name[name] for name in ("width only", "depth only", "length only")]
    cut_tokens = [each for name, each in by_name.items() if name.startswith("dense on")]
    after = "distilled" if "distilled" in by_name["joint"] else "refitted"
    result = [
        claim("dense_score", by_name["dense"]["cut"], "", 1),
        claim("joint_latency_ratio", by_name["joint"]["latency_ratio"], "", ROUNDS),
    ]
    for column, suffix in ((after, ""), ("refitted", "_refitted"), ("cut", "_before")):
        result += [
            claim(f"joint_score{suffix}", by_name["joint"][column], "", 1),
            claim(f"best_single_axis_score{suffix}", max(s[column] for s in single), "", 3),
            claim(f"uniform_score{suffix}", by_name["uniform"][column], "", 1),
            claim(
                f"random_score{suffix}",
                float(np.mean([r[column] for r in random_rows])),
                "",
                len(random_rows),
            ),
            claim(
                f"random_score_spread{suffix}",
                float(np.ptp([r[column] for r in random_rows])),
                "",
                len(random_rows),
            ),
        ]
    return result + [claim("truncated_score", each["cut"], "", 1) for each in cut_tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="minilm-20news")
    parser.add_argument("--budget", default="latency=60%")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--minutes", type=float, default=12.0, help="distillation of each plan")
    parser.add_argument("--seeds", type=int, default=3, help="random plans")
    parser.add_argument("--keep", type=Path, default=Path("build/compare"))
    parser.add_argument("--quick", action="store_true", help="validation split, no distillation")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console.configure(as_json=options.json)
    settings = Settings(
        profile="host",
        budget=options.budget,
        out=options.keep,
        precision=options.precision,
        recover_minutes=0.0 if options.quick else options.minutes,
    )
    task = load_task(options.task)
    profile, budget = load_profile("host"), Budget.parse(options.budget)
    assert budget.latency is not None and budget.latency.relative
    names = ("score", "cost", "dense", "joint", "width only", "depth only", "length only")
    names += ("uniform", *(f"random {seed}" for seed in range(options.seeds)), "truncated")
    stages = Stages(options.keep, names)
    with connect("local") as device:
        program, calibration = capture_stage(task)
        sites = find_sites(program)
        choices = choices_of(sites, profile.multiples)
        levels = token_levels(sites, profile.multiples)
        with stages.stage("score"):
            damage = score_stage(stages, sites, choices, levels, calibration, settings)
        with stages.stage("cost"):
            table = cost_stage(sites, profile, options.precision, device, levels, settings)
            dense, bounds = dense_stage(stages, sites, table, options.precision, device, budget)
        search = Search(
            *(sites, choices, levels, damage, table, bounds, task),
            calibration=first_examples(calibration, SCORED_EXAMPLES),
            precision=options.precision,
            device=device,
            dense=dense.path,
            folder=stages.folder,
        )
        split = "validation" if options.quick else "test"
        bench = Bench(task, search, stages, settings, calibration, split)
        found = list(rows(bench, budget.latency.value, options.seeds))
    emit(
        f"{task.name}, {options.precision}, {budget}, {split} split",
        found,
        claims(found),
        options.json,
    )


if __name__ == "__main__":
    main()
