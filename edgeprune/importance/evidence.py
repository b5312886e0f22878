"""What calibration data says about a program, computed once and shared by all criteria."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.nn import functional

from edgeprune.errors import InputError
from edgeprune.importance.readers import Reader, gram_of, reader_of
from edgeprune.importance.replay import Replay
from edgeprune.program.program import Program, as_tuple
from edgeprune.sites import Sites
from edgeprune.surgery import Gated, gate

# Random projections per batch for gradients: one per example and draw.
DRAWS = 2

Found = TypeVar("Found")


class Evidence:
    """Calibration batches with everything that criteria derive from them.

    Attributes:
        sites: of the dense program.
        batches: model inputs without labels.
        seed: for what is random.
        labels: of each batch, as ``Task.calibration_labels`` gives them; None without.
    """

    def __init__(
        self,
        sites: Sites,
        batches: Iterable[tuple[Tensor, ...]],
        seed: int = 0,
        labels: Iterable[Tensor] | None = None,
    ) -> None:
        self.sites = sites
        self.batches = tuple(batches)
        self.seed = seed
        self.labels = None if labels is None else tuple(labels)
        self._once: dict[Callable[[Evidence], Any], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it is made of: what was derived is derived again."""
        return Evidence, (self.sites, self.batches, self.seed, self.labels)

    def once(self, derive: Callable[[Evidence], Found]) -> Found:
        """``derive(self)``, kept: what one criterion computes for all sites together."""
        if derive not in self._once:
            self._once[derive] = derive(self)
        found: Found = self._once[derive]
        return found

    @cached_property
    def gated(self) -> Gated:
        """The program with a gate on every unit and sub-layer."""
        return gate(self.sites)

    @cached_property
    def readers(self) -> dict[str, Reader]:
        """Width site -> the matrix that reads it, where there is exactly one."""
        found = {
            site.name: reader_of(self.sites, site.name)
            for site in self.sites.cuttable
            if site.kind == "width"
        }
        return {name: reader for name, reader in found.items() if reader is not None}

    @cached_property
    def grams(self) -> dict[str, Tensor]:
        """Width site -> second moments of what its reader multiplies, [columns + 1] squared."""
        found = self.moments(list(self.readers.values()))
        return dict(zip(self.readers, found, strict=True))

    def moments(self, readers: Sequence[Reader]) -> list[Tensor]:
        """Second moments of what each of these multiplies, with a constant 1 appended."""
        totals: list[Tensor] = []
        for values in self.values([reader.source for reader in readers]):
            grams = [gram_of(each.features(x)) for each, x in zip(readers, values, strict=True)]
            totals = [a + b for a, b in zip(totals, grams, strict=True)] if totals else grams
        return totals

    def values(self, nodes: Sequence[fx.Node]) -> Iterator[tuple[Tensor, ...]]:
        """What the dense program computes at ``nodes``, batch by batch."""
        for batch in self.batches:
            yield values_at(self.sites.program.module, nodes, batch)

    @cached_property
    def outputs(self) -> tuple[tuple[Tensor, ...], ...]:
        """The dense program's float outputs, batch by batch.

        Raises:
            InputError: it has none.
        """
        program = self.sites.program
        with torch.no_grad():
            found = tuple(float_outputs(program(*batch)) for batch in self.batches)
        if not all(found):
            raise InputError(
                f"none of the model's outputs ({', '.join(program.output_names)}) is a float, so "
                "nothing says how far a cut moves them. Let it return its scores as well."
            )
        return found

    @cached_property
    def spread(self) -> tuple[float, ...]:
        """Each output's total squared deviation from its mean over all calibration examples."""
        spreads = []
        for parts in zip(*self.outputs, strict=True):
            whole = torch.cat(parts)
            spreads.append(max(float((whole - whole.mean(0)).double().square().sum()), 1e-30))
        return tuple(spreads)

    def moved(self, outputs: Iterable[tuple[Tensor, ...]]) -> float:
        """How far outputs are from the dense ones: squared distance over spread."""
        sums = [0.0] * len(self.spread)
        for ours, dense in zip(outputs, self.outputs, strict=True):
            for i, (mine, theirs) in enumerate(zip(float_outputs(ours), dense, strict=True)):
                sums[i] += float((mine - theirs).double().square().sum())
        return sum(s / spread for s, spread in zip(sums, self.spread, strict=True)) / len(sums)

    def moved_by(self, program: Program) -> float:
        """How far the outputs of a cut program are from the dense ones."""
        with torch.no_grad():
            return self.moved(as_tuple(program(*program.fit(batch))) for batch in self.batches)

    @cached_property
    def replay(self) -> Replay:
        """Runs the gated program again with some tensors replaced."""
        program = self.gated.program
        paths = [*self.gated.paths.values(), *(r.weight for r in self.readers.values())]
        paths += [r.bias for r in self.readers.values() if r.bias]
        return Replay(program.module, self.batches, paths)

    def movement(self, replaced: dict[str, Tensor]) -> float:
        """How far the outputs move when these gates, weights or biases are replaced."""
        return self.moved(self.replay.run(replaced))

    @cached_property
    def gate_gradients(self) -> dict[str, Tensor]:
        """Width site or sub-layer -> what :meth:`movement` gives per squared turn of each gate.

        To first order, estimated from random projections of the outputs: [units].
        """
        generator = torch.Generator().manual_seed(self.seed)
        totals = {name: torch.zeros_like(gate_.data) for name, gate_ in self.gated.gates.items()}
        for batch in self.batches:
            outputs = float_outputs(self.gated(*batch))
            for draw in range(DRAWS):
                projected = torch.zeros(())
                for output, spread in zip(outputs, self.spread, strict=True):
                    signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
                    projected = projected + (output * signs).sum() / spread**0.5
                gradients = torch.autograd.grad(
                    projected, list(self.gated.gates.values()), retain_graph=draw < DRAWS - 1
                )
                for name, gradient in zip(totals, gradients, strict=True):
                    totals[name] += gradient.square()
        return {name: total / (DRAWS * len(self.spread)) for name, total in totals.items()}


def float_outputs(outputs: Any) -> tuple[Tensor, ...]:
    """Of what a program returned. Class numbers do not move; the scores they follow from do."""
    return tuple(each for each in as_tuple(outputs) if each.is_floating_point())


def task_loss(outputs: Any, labels: Tensor) -> Tensor:
    """The mean loss of a batch: cross-entropy to class numbers, squared error to anything else.

    Args:
        outputs: of a program; the first of floats counts.
        labels: class numbers [...] for outputs [..., classes], or floats of the outputs' shape.
    """
    found = float_outputs(outputs)[0]
    if labels.is_floating_point():
        return functional.mse_loss(found, labels)
    return functional.cross_entropy(found.flatten(0, -2), labels.flatten())


def values_at(
    module: fx.GraphModule, nodes: Sequence[fx.Node], batch: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """What the module computes at ``nodes`` for one batch, without running what comes after."""
    wanted = set(nodes)
    found: dict[fx.Node, Tensor] = {}

    class Until(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n in wanted:
                found[n] = result
                if len(found) == len(wanted):
                    raise StopIteration
            return result

    with torch.no_grad(), contextlib.suppress(StopIteration):
        Until(module).run(*batch)
    return tuple(found[node] for node in nodes)
