"""Gates: the uncut program with a factor on every unit, at the input of every reader.

A unit whose gate is 0 is *masked*: what reads it reads 0. This is the oracle of all surgery
(masked equals removed), and the gates' gradients are what first-order criteria read. Zeroing at
the producer instead would be wrong through a norm or a sigmoid.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from edgeprune.errors import InputError
from edgeprune.plan import Plan
from edgeprune.program.graph import ATEN, annotate
from edgeprune.program.program import Program
from edgeprune.sites import Sites
from edgeprune.sites.atoms import Dim, unit_numbers
from edgeprune.surgery.draft import Draft

PREFIX = "gate_"


@dataclass(frozen=True)
class Gated:
    """A program whose units can be turned down.

    Attributes:
        program: computes what the original does while all gates are 1.
        gates: width site or sub-layer -> trainable factors [units].
    """

    program: Program
    gates: dict[str, torch.nn.Parameter]

    @property
    def paths(self) -> dict[str, str]:
        """Width site or sub-layer -> where the program holds its factors."""
        return {name: f"{PREFIX}{number}" for number, name in enumerate(self.gates)}

    def __call__(self, *inputs: torch.Tensor) -> Any:
        return self.program(*inputs)

    def set(self, name: str, kept: tuple[int, ...] | None) -> None:
        """Mask all units but ``kept``; None opens the site again."""
        with torch.no_grad():
            gate_ = self.gates[name]
            gate_.fill_(1.0 if kept is None else 0.0)
            if kept:
                gate_[list(kept)] = 1.0


def gate(sites: Sites, only: Collection[str] | None = None) -> Gated:
    """Put a gate on every width site that can be cut and on every sub-layer.

    Args:
        sites: of the program.
        only: names of the sites to gate; None gates all.
    """
    draft = Draft(sites)
    gates: dict[str, torch.nn.Parameter] = {}
    for site in sites.cuttable:
        if site.kind != "width" or (only is not None and site.name not in only):
            continue
        atom = sites.atoms[site.name].root
        factors = _parameter(draft, gates, site.name, site.units)
        for reader, source in readers(sites, atom):
            with draft.module.graph.inserting_before(draft.copies[reader]):
                _gate_input(draft, reader, source, atom, factors)
    for residual in sites.residuals:
        if only is not None and residual.name not in only:
            continue
        path = _parameter(draft, gates, residual.name, 1)
        add, branch = draft.copies[residual.add], draft.copies[residual.branch]
        with draft.module.graph.inserting_before(add):
            add.replace_input_with(branch, _times(draft, branch, draft.module.graph.get_attr(path)))
    draft.module.recompile()
    annotate(draft.module, sites.program.example_inputs)
    return Gated(replace(sites.program, module=draft.module), gates)


def masked(sites: Sites, plan: Plan) -> Program:
    """The uncut program with the units that ``plan`` removes masked (width and sub-layers).

    Raises:
        InputError: the plan cuts a vocabulary, whose ids have no zero to be.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for name, units in plan.kept.items():
        if sites.get(name).opt_in is not None:
            raise InputError(f"'{name}' cannot be masked: an id is looked up, and is never zero")
        parts = [residual.name for residual in sites.residuals if residual.layer == name]
        kept |= dict.fromkeys(parts or [name], units)
    gated = gate(sites, kept)
    for name, units in kept.items():
        gated.set(name, units)
    return gated.program


def readers(sites: Sites, atom: Dim) -> tuple[tuple[fx.Node, fx.Node], ...]:
    """(reader, input) wherever an operator uses the atom up, by summing over it or otherwise."""
    return tuple(sites.flow.readers.get(atom.root, ()))


def _parameter(draft: Draft, gates: dict[str, torch.nn.Parameter], name: str, units: int) -> str:
    path = f"{PREFIX}{len(gates)}"
    gates[name] = torch.nn.Parameter(torch.ones(units))
    draft.module.register_parameter(path, gates[name])
    return path


def _gate_input(draft: Draft, reader: fx.Node, source: fx.Node, atom: Dim, path: str) -> None:
    graph = draft.module.graph
    copy = draft.copies[reader]
    # Gates of other sites may already stand between the two.
    current = next(n for n in copy.all_input_nodes if _behind(n) is draft.copies[source])
    gated = current
    dims = draft.sites.flow.of(source)
    for axis, dim in enumerate(dims):
        if dim.contains(atom):
            numbers = torch.tensor(unit_numbers(dim, atom))
            index = draft.buffer(f"{path}_index_{reader.name}_{axis}", numbers.clamp(min=0))
            factors = draft.emit(ATEN.index_select.default, graph.get_attr(path), 0, index)
            if bool((numbers < 0).any()):  # entries of another segment: never masked
                other = draft.buffer(f"{path}_other_{reader.name}_{axis}", (numbers < 0).float())
                factors = draft.emit(ATEN.maximum.default, factors, other)
            shape = [-1] + [1] * (len(dims) - axis - 1)
            gated = _times(draft, gated, draft.emit(ATEN.reshape.default, factors, shape))
    copy.replace_input_with(current, gated)


def _times(draft: Draft, node: fx.Node, factors: fx.Node) -> fx.Node:
    product = draft.emit(ATEN.mul.Tensor, node, factors)
    product.meta["gated"] = _behind(node)
    return product


def _behind(node: fx.Node) -> fx.Node:
    """The node that a chain of gates multiplies."""
    found = node.meta.get("gated", node)
    assert isinstance(found, fx.Node)
    return found
