"""Does the joint plan beat what one would do without it, at the same measured latency?

Joint depth x width x length against each axis alone, a uniform keep ratio (units by magnitude),
random plans, and the dense model on truncated input. Solved plans are the search's choice within
the budget, all others are brought to it by measuring, in turns with the dense file. Scores are of
the lowered files on the test split: as cut, after the least-squares refit, and after distillation
with the same steps for each.
Results are kept in a folder as they come, so that a stopped comparison goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from _bench import claim, emit

from edgeprune import console, files
from edgeprune.budget import Budget
from edgeprune.cost import random_plan
from edgeprune.devices import Device, Workload, connect
from edgeprune.formulate import AXES, choices_of, token_levels
from edgeprune.importance import Evidence, rank_units
from edgeprune.lower import Lowering, lower
from edgeprune.plan import Plan
from edgeprune.profile import load_profile
from edgeprune.program import Program, capture
from edgeprune.search import Search
from edgeprune.settings import Settings
from edgeprune.sites import find_sites
from edgeprune.stages import Stages
from edgeprune.steps import (
    capture_stage,
    cost_stage,
    dense_stage,
    example_of,
    recover_stage,
    score_stage,
    scored_examples,
    solve_stage,
)
from edgeprune.surgery import apply
from edgeprune.task import Batch, Task, cosines, load_task, predict_all
from edgeprune.tasks.minilm_20news import truncated

ROUNDS = 40
# A plan counts as being of the budget's latency within this much of it.
NEAR = 0.02
TRIES = 8
STATES = ("cut", "refitted", "distilled")


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    task: Task
    search: Search
    stages: Stages
    settings: Settings
    calibration: tuple[Batch, ...]
    split: str
    goal: float

    @property
    def device(self) -> Device:
        """The device everything is measured on."""
        assert self.search.device is not None
        return self.search.device

    def lowered(self, name: str, program: Program) -> Path:
        """The program as a file for the device."""
        path = self.stages.folder / f"{name}.pte"
        lower(program, path, self.search.lowering)
        return path

    def share(self, path: Path, example: Batch) -> float:
        """Measured median latency of a file over the dense one's, in turns."""
        assert self.search.dense is not None
        dense = Workload("dense", self.search.dense, example_of(self.search.sites.program))
        found = self.device.measure_in_turns(
            [dense, Workload("plan", path, example)], rounds=ROUNDS
        )
        return float(np.median(np.divide(found["plan"].samples_ms, found["dense"].samples_ms)))

    def quality(self, path: Path, tokens: int | None = None) -> dict[str, float]:
        """A file's score on the split, and its mean cosine to the dense program's outputs.

        Args:
            tokens: what inputs are truncated to, as the file expects it; None: not at all.
        """
        inputs = tuple(torch.cat(column) for column in zip(*self.calibration, strict=True))
        dense = predict_all(lambda batch: self.search.sites.program(*batch), inputs)
        read = self.task.evaluate if self.split == "test" else self.task.validate
        with self.device.predictor(path) as run:

            def predict(batch: Batch) -> Any:
                return run(truncated(batch, tokens) if tokens else batch)

            score = read(predict)
            assert score is not None
            near = cosines(predict_all(predict, inputs), dense)
        return {"score": float(np.mean(score)), "cosine": float(near.mean())}


def chosen(bench: Bench, axes: tuple[str, ...]) -> Plan:
    """The search's choice with all or only some axes open."""
    multiples = load_profile(bench.settings.profile).multiples
    choices = choices_of(bench.search.sites, multiples, axes)
    return solve_stage(bench.stages, replace(bench.search, choices=choices), bench.settings).plan


def uniform(bench: Bench) -> Plan:
    """The same keep ratio in every width site, units by magnitude, brought to the latency."""
    sites = bench.search.sites
    orders = rank_units(Evidence(sites, bench.search.calibration), "l1")

    def plan(ratio: float) -> Plan:
        kept = {
            name: tuple(sorted(order[: max(1, round(ratio * len(order)))]))
            for name, order in orders.items()
        }
        return Plan(sites.program.fingerprint, kept)

    return brought_to(bench, "uniform", plan)


def random(bench: Bench, seed: int) -> Plan:
    """A random plan over all axes, brought to the latency by its share of everything."""
    sites = bench.search.sites

    def plan(share: float) -> Plan:
        return random_plan(sites, np.random.default_rng([seed, 7]), share)

    return brought_to(bench, f"random-{seed}", plan)


def brought_to(bench: Bench, name: str, plan: Callable[[float], Plan]) -> Plan:
    """The plan of a one-parameter family that is nearest to the latency share, by bisection."""
    sites = bench.search.sites
    low, high = 0.02, 1.0
    best: tuple[float, Plan] | None = None
    for _ in range(TRIES):
        middle = (low + high) / 2
        tried = plan(middle)
        program = apply(sites.program, tried, sites)
        share = bench.share(bench.lowered(name, program), example_of(program))
        if best is None or abs(share - bench.goal) < abs(best[0] - bench.goal):
            best = (share, tried)
        if abs(share - bench.goal) <= NEAR * bench.goal:
            break
        low, high = (low, middle) if share > bench.goal else (middle, high)
    assert best is not None
    return best[1]


def row(bench: Bench, name: str, plan: Plan) -> dict[str, Any]:
    """One plan: its measured latency, and its score as cut, refitted and distilled."""
    sites, settings = bench.search.sites, bench.settings
    result: dict[str, Any] = {"plan": name}
    steps = {"refitted": None, "distilled": settings.recover_steps}
    for state in STATES[: 3 if settings.recover_steps else 2]:
        if state == "cut":
            program = apply(sites.program, plan, sites)
        else:
            told = replace(settings, recover_steps=steps[state])
            program, _ = recover_stage(
                bench.stages, sites, plan, bench.task, bench.calibration, told
            )
        path = bench.lowered(f"{name}-{state}", program)
        if state == "cut":
            result["latency_ratio"] = bench.share(path, example_of(program))
        found = bench.quality(path)
        result |= {state: found["score"], f"cosine_{state}": found["cosine"]}
    return result


def truncation(bench: Bench) -> dict[str, Any]:
    """The dense model on as many tokens as fit into the latency."""
    low, high = 1, bench.search.sites.program.example_inputs[0].shape[1]
    best: dict[str, Any] = {}
    while high - low > 1:
        tokens = (low + high) // 2
        program = capture(bench.task.model(), truncated(bench.task.example_inputs(), tokens))
        path = bench.lowered(f"truncated-{tokens}", program)
        share = bench.share(path, example_of(program))
        if share <= bench.goal:
            low, best = tokens, {"path": path, "tokens": tokens, "share": share}
        else:
            high = tokens
    found = bench.quality(best["path"], best["tokens"])
    return {
        "plan": f"dense on {best['tokens']} tokens",
        "latency_ratio": best["share"],
        **dict.fromkeys(STATES, found["score"]),
        **{f"cosine_{state}": found["cosine"] for state in STATES},
    }


def dense_row(bench: Bench) -> dict[str, Any]:
    """The dense file itself."""
    assert bench.search.dense is not None
    found = bench.quality(bench.search.dense)
    scores = dict.fromkeys(STATES, found["score"])
    return {"plan": "dense", "latency_ratio": 1.0, **scores, "cosine_cut": found["cosine"]}


def rows(bench: Bench, seeds: int) -> Iterator[dict[str, Any]]:
    """All rows, each kept in the folder once it is there."""
    plans: dict[str, Callable[[], Plan]] = {
        "joint": partial(chosen, bench, AXES),
        "uniform": partial(uniform, bench),
        **{f"random {seed}": partial(random, bench, seed) for seed in range(seeds)},
        **{f"{axis} only": partial(chosen, bench, (axis,)) for axis in AXES},
    }
    makers: dict[str, Callable[[], dict[str, Any]]] = {"dense": partial(dense_row, bench)}
    if bench.task.name == "minilm-20news":
        makers["truncated"] = partial(truncation, bench)
    makers |= {name: lambda name=name: row(bench, name, plans[name]()) for name in plans}  # type: ignore[misc]
    search = bench.search
    asked = (vars(search.lowering), bench.goal, bench.split, bench.settings.recover_steps)
    key = (search.damage.to_json(), search.table.hash, search.task.content_hash(), *asked)
    for name, make in makers.items():
        with bench.stages.stage(name):
            yield bench.stages.keep(
                bench.stages.path(f"row-{name.replace(' ', '-')}", *key, suffix=".json"),
                make,
                lambda found, path: files.write_json(path, "row", {"row": found}),
                lambda path: files.read_json(path, "row")["row"],
            )


def claims(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The numbers that the comparison stands for."""
    by_name = {each["plan"]: each for each in found}
    random_rows = [each for name, each in by_name.items() if name.startswith("random")]
    single_rows = [by_name[f"{axis} only"] for axis in AXES]
    cut_tokens = [each for name, each in by_name.items() if name.startswith("dense on")]
    after = "distilled" if "distilled" in by_name["joint"] else "refitted"
    result = [
        claim("dense_score", by_name["dense"]["cut"], "", 1),
        claim("joint_latency_ratio", by_name["joint"]["latency_ratio"], "", ROUNDS),
    ]
    for column, suffix in ((after, ""), ("refitted", "_refitted"), ("cut", "_before")):
        result += [
            claim(f"joint_score{suffix}", by_name["joint"][column], "", 1),
            claim(f"best_single_axis_score{suffix}", max(r[column] for r in single_rows), "", 3),
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
    parser.add_argument("--steps", type=int, default=800, help="of distillation, for each plan")
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
        recover_minutes=0.0,
        recover_steps=None if options.quick else options.steps,
    )
    task = load_task(options.task)
    lowering = Lowering(options.precision)
    profile, budget = load_profile("host"), Budget.parse(options.budget)
    assert budget.latency is not None and budget.latency.relative
    seeds = tuple(f"random {seed}" for seed in range(options.seeds))
    names = ("score", "cost", "dense", "truncated", "joint", "uniform", *seeds)
    names += tuple(f"{axis} only" for axis in AXES)
    stages = Stages(options.keep, names)
    with connect("local") as device:
        program, calibration = capture_stage(task)
        sites = find_sites(program)
        choices = choices_of(sites, profile.multiples)
        levels = token_levels(sites, profile.multiples)
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
        split = "validation" if options.quick else "test"
        share = budget.latency.value
        bench = Bench(task, search, stages, settings, calibration, split, share)
        found = list(rows(bench, options.seeds))
    emit(
        f"{task.name}, {lowering}, {budget}, {split} split",
        found,
        claims(found),
        options.json,
    )


if __name__ == "__main__":
    main()
