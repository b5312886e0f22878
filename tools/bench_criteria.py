"""Which criteria rank units well, and which beat a random choice? On two networks of a minute each.

- oracle: Spearman's rank correlation with each of all 160 channels of a CNN on digits gone alone.
  masked: with how far the outputs move where all else stays; removed: where batch-norm statistics
  behind it follow, as after surgery; and with how much the loss grows then; and within layers.
- duplicates: half of the middle layer is copied with 2% noise, half is kept: how many of the
  distinct channels stay.
- layer: 75% of the middle layer is cut, batch-norm statistics are taken anew, nothing is trained:
  accuracy.
- heads: half of every layer's heads are cut from a small vision transformer: accuracy.
Each seed trains its own networks. "over random" is the difference to the mean of five random
choices in the same network; a claim is made only where its mean over the seeds is beyond its
standard deviation.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterable
from typing import Any

# Before NumPy loads: criteria are compared, not cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from _bench import claim, emit
from _digits_cnn import DigitsCnn, accuracy, digits, trained
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr
from torch.func import functional_call

from edgeprune.importance import CRITERIA, Criterion, Evidence
from edgeprune.importance.evidence import task_loss
from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.program.program import as_tuple
from edgeprune.recover import reestimate
from edgeprune.sites import Site, find_sites
from edgeprune.surgery import apply
from edgeprune.tasks.digits_vit import DigitsVit, VisionTransformer, train

SEEDS = 5
RANDOM_CHOICES = 5
CALIBRATION = 240
BATCH = 48
# Of the middle layer, and of the heads.
KEPT_CHANNELS, KEPT_HEADS = 16, 3
NOISE = 0.02
ORACLES = ("masked", "removed", "removed: loss", "removed, in a layer")
DISTINCT = "distinct kept %"
Found = dict[str, dict[str, list[float]]]
"""Criterion -> check -> one number per seed."""


def main() -> None:
    """Run every criterion through every check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds instead of five")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    seeds = 2 if asked.quick else SEEDS
    found: Found = {name: {} for name in CRITERIA}
    for seed in track(range(seeds), "seeds", console=Console(stderr=True)):
        network = trained(seed)
        note(found, "dense layer", {"random": 100 * accuracy(network)})
        oracle(found, network, seed)
        duplicates(found, network, seed)
        one_layer(found, network, seed)
        heads(found, seed)
    rows = [row(CRITERIA[name], checks) for name, checks in found.items()]
    emit(f"criteria, mean and deviation over {seeds} seeds", rows, claims(found), asked.json)


def note(found: Found, check: str, values: dict[str, float]) -> None:
    """Add one number per criterion."""
    for name, value in values.items():
        found[name].setdefault(check, []).append(float(value))


def evidence_of(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Evidence:
    """Calibration data with labels."""
    sites = find_sites(capture(model, (images[:2],)))
    return Evidence(sites, [(x,) for x in images.split(BATCH)], labels=labels.split(BATCH))


def of_digits(model: DigitsCnn) -> Evidence:
    """Evidence about the CNN from its first training images."""
    data = digits()
    return evidence_of(model, data.images[:CALIBRATION], data.labels[:CALIBRATION])


def widths(evidence: Evidence, axis: str) -> list[Site]:
    """The cuttable sites of an axis, in the order of the network."""
    return [site for site in evidence.sites.cuttable if site.axis == axis]


def oracle(found: Found, network: DigitsCnn, seed: int) -> None:
    """Rank correlations with each channel gone alone."""
    evidence = seeded(of_digits(network), seed)
    sites = widths(evidence, "channels")
    masked, moved, lost = zip(*(gone_alone(evidence, site) for site in sites), strict=True)
    for name, criterion in CRITERIA.items():
        if not all(criterion.applies(evidence, site) for site in sites):
            continue
        scores = [criterion.score(evidence, site).double().numpy() for site in sites]
        whole = np.concatenate(scores)
        for check, truth in zip(ORACLES[:-1], (masked, moved, lost), strict=True):
            note(found, check, {name: spearmanr(whole, np.concatenate(truth)).statistic})
        inside = [spearmanr(s, m).statistic for s, m in zip(scores, moved, strict=True)]
        note(found, ORACLES[-1], {name: np.mean(np.nan_to_num(inside))})  # all equal: no order


def seeded(evidence: Evidence, seed: int) -> Evidence:
    """The same data for another seed of all that is random."""
    return Evidence(evidence.sites, evidence.batches, seed, evidence.labels)


def gone_alone(evidence: Evidence, site: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far outputs move with one unit masked, with it removed, and the loss then: [units]."""
    assert evidence.labels is not None
    path, module = evidence.gated.paths[site.name], evidence.gated.program.module
    masked, moved, lost = [], [], []
    for unit in range(site.units):
        gate = torch.ones(site.units)
        gate[unit] = 0.0
        with torch.no_grad():
            still = [functional_call(module, {path: gate}, batch) for batch in evidence.batches]
        masked.append(evidence.moved(map(as_tuple, still)))
        outputs = list(evidence.replay.run({path: gate}))
        moved.append(evidence.moved(outputs))
        losses = [task_loss(*pair) for pair in zip(outputs, evidence.labels, strict=True)]
        lost.append(float(torch.stack(losses).mean()))
    return np.array(masked), np.array(moved), np.array(lost)


def duplicates(found: Found, network: DigitsCnn, seed: int) -> None:
    """The share of distinct channels that stay when half of a doubled layer does."""
    doubled = copy.deepcopy(network)
    pairs = double_half(doubled, seed)
    evidence = seeded(of_digits(doubled), seed)
    site = widths(evidence, "channels")[1]
    for name, criterion in applicable(evidence, site):
        kept = best(criterion, evidence, site, site.units // 2)
        stay = sum(one in kept or two in kept for one, two in pairs)
        note(found, DISTINCT, {name: 100 * stay / len(pairs)})


def double_half(network: DigitsCnn, seed: int) -> list[tuple[int, int]]:
    """Let half of the middle layer copy the other half: (original, copy)."""
    generator = torch.Generator().manual_seed(seed)
    convolution, norm = network.layers[3], network.layers[4]
    originals, copies = torch.randperm(len(norm.weight), generator=generator).chunk(2)
    with torch.no_grad():
        weight = convolution.weight
        drawn = torch.randn(weight[copies].shape, generator=generator)
        weight[copies] = weight[originals] + NOISE * weight.std() * drawn
        for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            each[copies] = each[originals]
    return list(zip(originals.tolist(), copies.tolist(), strict=True))


def one_layer(found: Found, network: DigitsCnn, seed: int) -> None:
    """Accuracy with three quarters of the middle layer cut."""
    data, evidence = digits(), of_digits(network)
    site = widths(evidence, "channels")[1]

    def score(kept: dict[str, tuple[int, ...]]) -> float:
        cut = apply(
            evidence.sites.program, Plan(evidence.sites.program.fingerprint, kept), evidence.sites
        )
        return accuracy(reestimate(cut, [(data.images,)]).module)

    compare(found, "layer", score, evidence, [site], KEPT_CHANNELS, seed)


def heads(found: Found, seed: int) -> None:
    """Accuracy of the vision transformer with half of every layer's heads cut."""
    task = DigitsVit()
    images = torch.cat([x for (x,) in task.calibration()])
    labels = torch.cat(list(task.calibration_labels()))
    evidence = evidence_of(trained_vit(task, seed), images, labels)

    def score(kept: dict[str, tuple[int, ...]]) -> float:
        plan = Plan(evidence.sites.program.fingerprint, kept)
        cut = apply(evidence.sites.program, plan, evidence.sites)
        return float(np.mean(task.evaluate(lambda batch: cut(*batch))))

    note(found, "dense heads", {"random": 100 * score({})})
    compare(found, "heads", score, evidence, widths(evidence, "heads"), KEPT_HEADS, seed)


def trained_vit(task: DigitsVit, seed: int) -> torch.nn.Module:
    """The built-in task's network, trained from another seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VisionTransformer()
    return train(network, *task.splits["train"], seed).eval()


def compare(
    found: Found,
    check: str,
    score: Callable[[dict[str, tuple[int, ...]]], float],
    evidence: Evidence,
    sites: list[Site],
    kept: int,
    seed: int,
) -> None:
    """Accuracies in percent by every criterion, and what each is over random."""

    def percent(criterion: Criterion, seed: int) -> float:
        data = seeded(evidence, seed)
        return 100 * score({site.name: best(criterion, data, site, kept) for site in sites})

    seeds = range(seed * RANDOM_CHOICES, (seed + 1) * RANDOM_CHOICES)
    chance = [percent(CRITERIA["random"], each) for each in seeds]
    note(found, check, {"random": float(np.mean(chance))})
    note(found, f"{check} spread", {"random": float(np.std(chance, ddof=1))})
    for name, criterion in applicable(evidence, *sites):
        if name != "random":
            reached = percent(criterion, seed)
            note(found, check, {name: reached})
            note(found, f"{check} over random", {name: reached - float(np.mean(chance))})


def applicable(evidence: Evidence, *sites: Site) -> Iterable[tuple[str, Criterion]]:
    """The criteria that can score all of these sites."""
    for name, criterion in CRITERIA.items():
        if all(criterion.applies(evidence, site) for site in sites):
            yield name, criterion


def best(criterion: Criterion, evidence: Evidence, site: Site, kept: int) -> tuple[int, ...]:
    """The units that stay."""
    order = criterion.score(evidence, site).argsort(descending=True, stable=True)
    return tuple(sorted(order[:kept].tolist()))


def row(criterion: Criterion, checks: dict[str, list[float]]) -> dict[str, Any]:
    """One line of the table."""
    told = {
        check: f"{np.mean(values):.{2 if check in ORACLES else 1}f} ± {np.std(values, ddof=1):.2f}"
        for check, values in checks.items()
        if check in (*ORACLES, DISTINCT)
    }
    for check in ("layer", "heads"):
        if over := checks.get(f"{check} over random"):
            found = (
                f"{np.mean(checks[check]):.1f}: {np.mean(over):+.1f} ± {np.std(over, ddof=1):.1f}"
            )
            told[f"{check} %: over random"] = found + ("" if beyond(over) else ", no claim")
    return {"criterion": criterion.name, "needs": criterion.needs} | told


def beyond(values: list[float]) -> bool:
    """Whether a difference's mean is beyond its deviation over at least three seeds."""
    return len(values) > 2 and abs(np.mean(values)) > np.std(values, ddof=1)


def claims(found: Found) -> list[dict[str, Any]]:
    """What random reaches, and differences to it that are not inside their spread."""
    random = found["random"]
    told = [
        claim(
            f"{'' if check.startswith('dense') else 'random_'}{check.replace(' ', '_')}_pct",
            float(np.mean(values)),
            "%",
            len(values),
        )
        for check, values in random.items()
        if check not in (*ORACLES, DISTINCT)
    ]
    return told + [
        claim(f"{name}_{check.replace(' ', '_')}", float(np.mean(values)), "points", len(values))
        for name, checks in found.items()
        for check, values in checks.items()
        if check.endswith("over random") and beyond(values)
    ]


if __name__ == "__main__":
    main()
