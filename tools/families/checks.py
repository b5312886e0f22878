"""What must hold for a family: one check a function, each gives the largest difference it saw."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune.devices import connect
from edgeprune.lower import lower
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.program.program import as_tuple
from edgeprune.sites import Site, Sites
from edgeprune.surgery import apply, masked
from families.family import Family


def random_plan(sites: Sites, seed: int, axes: Iterable[str] | None = None) -> Plan:
    """A plan over width and sub-layers, drawn anew for each seed; ``axes`` limits it."""
    draw = random.Random(seed)
    kept: dict[str, tuple[int, ...]] = {}
    for site in sites.cuttable:
        if axes is not None and site.axis not in axes:
            continue
        if site.kind == "width" and draw.random() < 0.7:
            kept[site.name] = tuple(sorted(draw.sample(range(site.units), _some(site, draw))))
        elif site.axis == "sublayer" and draw.random() < 0.2:
            kept[site.name] = ()
    return Plan(sites.program.fingerprint, kept)


def _some(site: Site, draw: random.Random) -> int:
    return draw.randint(max(1, site.units // 4), site.units)


def masked_equals_removed(family: Family, sites: Sites, plan: Plan) -> float:
    """The largest difference between the cut program and the masked one, relative to the largest
    output. ``sites`` are of the family's float64 program."""
    inputs = family.draw(3, 7, torch.float64)
    with torch.no_grad():
        got = as_tuple(apply(sites.program, plan, sites)(*inputs))
        wanted = as_tuple(masked(sites, plan)(*inputs))
    return difference(got, wanted)


def trains(program: Program, inputs: tuple[Tensor, ...]) -> bool:
    """Whether every weight gets a finite gradient and a step lowers the loss."""
    weights = [w for w in program.tensors.values() if isinstance(w, nn.Parameter)]
    before = _loss(program, inputs)
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    squares = sum((g.square().sum() for g in gradients if g is not None), torch.zeros(()))
    if not bool(squares.isfinite()) or float(squares) == 0:
        return False
    saved = [w.detach().clone() for w in weights]
    step = 1e-3 * float(before) / float(squares)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= step * gradient
        after = _loss(program, inputs)
        for weight, old in zip(weights, saved, strict=True):
            weight.copy_(old)
    return bool(after < before)


def reloads(program: Program, inputs: tuple[Tensor, ...]) -> float:
    """The largest difference after saving and loading."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        loaded = Program.load(program.save(Path(folder, "slim.pt2")))
    with torch.no_grad():
        return difference(as_tuple(loaded(*inputs)), as_tuple(program(*inputs)))


def runs(program: Program, inputs: tuple[Tensor, ...]) -> float:
    """The largest difference between the lowered file, run here, and the program; batch 1."""
    one = tuple(x[:1] for x in inputs)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        artifact = lower(program, Path(folder, "slim.pte"), Lowering())
        with connect("local") as device, device.predictor(artifact.path) as predict:
            outputs = predict(one)
    with torch.no_grad():
        return difference(as_tuple(outputs), as_tuple(program(*one)))


def difference(got: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The largest distance of two results, relative to the largest wanted value (at least 1e-6)."""
    worst = 0.0
    for mine, theirs in zip(got, wanted, strict=True):
        if mine.shape != theirs.shape:
            return float("inf")
        scale = max(float(theirs.double().abs().max()), 1e-6)
        worst = max(worst, float((mine.double() - theirs.double()).abs().max()) / scale)
    return worst


def _loss(program: Program, inputs: tuple[Tensor, ...]) -> Tensor:
    floats = [x for x in as_tuple(program(*inputs)) if x.is_floating_point()]
    return sum((x.square().mean() for x in floats), torch.zeros(()))
