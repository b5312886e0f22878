"""What must hold for a family: one check a function, each gives the largest difference it saw."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.build import plan as plan_of_task
from edgeprune.devices.runtimes import RUNTIMES
from edgeprune.lower import lower
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.program.graph import ATEN, is_call
from edgeprune.program.program import as_tuple
from edgeprune.sites import Site, Sites
from edgeprune.surgery import apply, masked
from edgeprune.task import Batch, Predict, Score, Task
from families.family import Family

MATRICES = (
    *(ATEN.linear, ATEN.conv1d, ATEN.conv2d, ATEN.conv3d),
    *(ATEN.conv_transpose1d, ATEN.conv_transpose2d, ATEN.conv_transpose3d),
)


def random_plan(
    sites: Sites, seed: int, axes: Iterable[str] | None = None, exact: bool = True
) -> Plan:
    """A plan over width and sub-layers, drawn anew for each seed; ``axes`` limits it, and with
    ``exact`` it cuts only where masked equals removed."""
    draw = random.Random(seed)
    kept: dict[str, tuple[int, ...]] = {}
    for site in sites.cuttable:
        if (axes is not None and site.axis not in axes) or (exact and not site.exact):
            continue
        if site.kind == "width" and draw.random() < 0.7:
            kept[site.name] = tuple(sorted(draw.sample(range(site.units), _some(site, draw))))
        elif site.axis == "sublayer" and draw.random() < 0.2:
            kept[site.name] = ()
    return Plan(sites.program.fingerprint, kept)


def half_plan(sites: Sites, inputs: tuple[Tensor, ...]) -> Plan:
    """The mildest uniform width plan with at most half of the floating point operations.

    Where even one unit a site leaves more, that one.
    """
    low, high = 0.0, 1.0
    for _ in range(6):
        share = (low + high) / 2
        cut = apply(sites.program, _uniform(sites, share), sites)
        if flops(cut, inputs) <= 0.5 * flops(sites.program, inputs):
            low = share
        else:
            high = share
    return _uniform(sites, low)


def _uniform(sites: Sites, share: float) -> Plan:
    kept = {
        site.name: tuple(range(max(1, int(site.units * share))))
        for site in sites.cuttable
        if site.kind == "width"
    }
    return Plan(sites.program.fingerprint, kept)


class _Noise(Task):
    """A family as a user brings it, its data drawn at random."""

    def __init__(self, family: Family) -> None:
        self.name, self._family = family.name, family

    def model(self) -> nn.Module:
        return self._family.build()

    def example_inputs(self) -> Batch:
        return self._family.draw(2, 0)

    def calibration(self) -> Iterable[Batch]:
        return [self._family.draw(16, seed) for seed in (1, 2)]

    def evaluate(self, predict: Predict) -> Score:
        return 0.0


def solved_plan(family: Family) -> Plan:
    """What a user gets at 60% of the latency: damages measured on noise, costs estimated."""
    asked = {"profile": "pixel8", "budget": "latency=60%", "precision": "fp32"}
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        return plan_of_task(_Noise(family), out=Path(folder), **asked).plan


def flops(program: Program, inputs: tuple[Tensor, ...]) -> int:
    """Of one call: matrix products, convolutions and attention, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program(*inputs)
    return counter.get_total_flops()


def share_behind_sites(sites: Sites) -> float:
    """The share of linear and convolution weights that some cuttable site cuts."""
    module = sites.program.module
    weights = {
        str(node.args[1].target)
        for node in module.graph.nodes
        if is_call(node, *MATRICES) and node.args[1].op == "get_attr"
    }
    cut = {path for site in sites.cuttable if site.kind == "width" for path, _ in site.weights}
    size = {path: sites.program.tensors[path].numel() for path in weights}
    return sum(size[path] for path in weights & cut) / max(1, sum(size.values()))


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
    """Whether the gradients are finite, and a step against them lowers the loss."""
    weights = [w for w in program.tensors.values() if isinstance(w, nn.Parameter)]
    before = _loss(program, inputs)
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    squares = sum((g.square().sum() for g in gradients if g is not None), torch.zeros(()))
    if not bool(squares.isfinite()) or float(squares) == 0:
        return False
    saved = [w.detach().clone() for w in weights]
    step = 1e-4 * before.detach() / squares
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
    one = program.fit(tuple(x[:1].contiguous() for x in inputs))
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        artifact = lower(program, Path(folder, "slim.pte"), Lowering())
        method = RUNTIMES[".pte"](1).prepare(str(artifact.path))()
        outputs = [torch.as_tensor(x).clone() for x in method.bind([x.numpy() for x in one])()]
    with torch.no_grad():
        return difference(outputs, as_tuple(program(*one)))


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
