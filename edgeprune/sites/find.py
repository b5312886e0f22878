"""Find every site of a program: propagate axes, then read off width, depth and length."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx

from edgeprune import files
from edgeprune.errors import InputError
from edgeprune.program.graph import ATEN, calls, get_attribute
from edgeprune.program.program import Program
from edgeprune.sites import rules
from edgeprune.sites.atoms import Dim
from edgeprune.sites.depth import Layer, Residual, find_layers, find_residuals, layer_prefix
from edgeprune.sites.flow import OUTPUT, Flow
from edgeprune.sites.inputs import InputLength, find_input_lengths
from edgeprune.sites.length import TokenStream, find_token_streams
from edgeprune.sites.parts import Part, partition
from edgeprune.sites.site import Site, unique_name
from edgeprune.sites.tables import Table, find_tables

assert rules  # importing them registers every operator's rule

WIDTH_NAMES = {"ffn": "neurons"}
# Atoms that weights carry and that are no width: cut by a length site, or never.
NOT_WIDTH = ("tokens", "head_dim", "kernel")
VOCABULARY_OPT_IN = "it changes what the model's ids or outputs stand for"


@dataclass(frozen=True)
class Sites:
    """All sites of one program, with what surgery needs to cut them.

    Attributes:
        program: the program they were found in.
        flow: the dimension trees of every tensor.
        atoms: width site name -> its atom.
        axes: width site name -> its axis.
        residuals, layers, streams: sub-layers, layers and token streams in graph order.
        tables: embedding and un-embedding matrices.
        lengths: site name -> a length of the inputs.
    """

    program: Program
    flow: Flow
    atoms: dict[str, Dim]
    axes: dict[str, str]
    residuals: tuple[Residual, ...]
    layers: tuple[Layer, ...]
    streams: tuple[TokenStream, ...]
    tables: tuple[Table, ...]
    lengths: dict[str, InputLength]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the program: what points into its graph is found again."""
        return find_sites, (self.program,)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in the order of the graph: what can be cut and what cannot."""
        found = [_width_site(self, name, atom) for name, atom in self.atoms.items()]
        found += [_depth_site(self, r.name, "sublayer", (r,)) for r in self.residuals]
        found += [_depth_site(self, each.name, "layer", each.sublayers) for each in self.layers]
        found += [
            Site(s.name, "tokens", s.tokens.size, s.why_not, pinned=s.pinned) for s in self.streams
        ]
        found += [_rank_site(self, table) for table in self.tables]
        found += [
            Site(name, each.axis, each.size, each.why_not, step=each.step)
            for name, each in self.lengths.items()
        ]
        return tuple(found)

    @cached_property
    def shared(self) -> frozenset[str]:
        """Paths of the weights that more than one sub-layer reads."""
        count = Counter(path for residual in self.residuals for path in residual.weights)
        return frozenset(path for path, times in count.items() if times > 1)

    @cached_property
    def weight_readers(self) -> dict[str, set[fx.Node]]:
        """Path of a weight or buffer -> the calls that read it."""
        found: dict[str, set[fx.Node]] = {}
        for node in self.program.module.graph.nodes:
            if node.op == "get_attr":
                found.setdefault(str(node.target), set()).update(node.users)
        return found

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The program as sub-layers and, outside of them, chunks around one weight each."""
        return partition(self)

    @property
    def cuttable(self) -> tuple[Site, ...]:
        """The sites that a solver may cut; a plan may also name those that are opt-in."""
        return tuple(s for s in self.sites if s.why_not is None and s.opt_in is None)

    def get(self, name: str) -> Site:
        """The site of that name.

        Raises:
            InputError: there is none.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise InputError(f"site '{name}': the model has none of that name. See `edgeprune inspect`")

    def write(self, path: str | Path) -> Path:
        """Write ``sites.json``."""
        return files.write_json(path, "sites", {"sites": [site.to_json() for site in self.sites]})


def find_sites(program: Program) -> Sites:
    """Analyse a program. Unknown operators freeze what they touch; nothing raises."""
    flow = Flow(program)
    residuals = find_residuals(program.module)
    streams = find_token_streams(flow, residuals)
    axes = _atom_axes(flow, residuals)
    atoms = _name_atoms(flow, axes)
    names = {name: axes.get(atom, "units") for name, atom in atoms.items()}
    layers = find_layers(residuals)
    tables = find_tables(flow, {atom for atom, axis in axes.items() if axis == "vocabulary"})
    lengths = {each.name: each for each in find_input_lengths(flow)}
    return Sites(program, flow, atoms, names, residuals, layers, streams, tables, lengths)


def carriers(flow: Flow, atom: Dim) -> tuple[tuple[str, int], ...]:
    """(path, dimension) of every weight and buffer that holds the atom."""
    return tuple(flow.holders.get(atom.root, ()))


def _name_atoms(flow: Flow, axes: dict[Dim, str]) -> dict[str, Dim]:
    """Every atom with weights behind it, under a name from those weights."""
    module = flow.program.module
    trained = {
        path: dims
        for path, dims in flow.tensors.items()
        if isinstance(get_attribute(module, path), torch.nn.Parameter)
    }
    atoms = dict.fromkeys(
        leaf for dims in trained.values() for dim in dims for leaf in dim.leaves() if leaf.size > 1
    )
    named: dict[str, Dim] = {}
    for atom in atoms:
        axis = axes.get(atom, "units")
        if axis in NOT_WIDTH:
            continue
        owners = (path for path, _ in carriers(flow, atom))
        prefix = layer_prefix(filter(trained.__contains__, owners))
        word = WIDTH_NAMES.get(axis, axis)
        base = f"{prefix}.{word}" if prefix and axis != "d_model" else word
        named[unique_name(base, named)] = atom
    return named


def _atom_axes(flow: Flow, residuals: tuple[Residual, ...]) -> dict[Dim, str]:
    """Atom -> axis, from what the rules noted."""
    roles: dict[Dim, str] = {}
    for node in calls(flow.program.module.graph, ATEN.linear):
        roles.setdefault(flow.of(node)[-1].root, "ffn")
    # Channels first: what a group or a kernel is by its own operator, others call channels.
    for role, dim in sorted(flow.roles, key=lambda noted: noted[0] != "channels"):
        for leaf in dim.leaves():
            if role in ("channels", "groups", "vocabulary", "kernel", "tokens"):
                roles[leaf] = role
    for residual in residuals:
        for leaf in flow.of(residual.add)[-1].leaves():
            roles[leaf] = "d_model"
    for node in calls(flow.program.module.graph, ATEN.scaled_dot_product_attention):
        if node in flow.unknown:
            continue
        query, key = flow.of(node.args[0]), flow.of(node.args[1])
        heads = list(query[1].leaves())
        for leaf in heads:
            roles[leaf] = "heads" if len(heads) == 1 else "kv_groups"
        if len(heads) > 1:
            roles[heads[-1]] = "queries_per_group"
        for dim in (query[3], key[3], flow.of(node)[3]):
            roles.update(dict.fromkeys(dim.leaves(), "head_dim"))
    roles.update(dict.fromkeys(_unembedded(flow, roles), "vocabulary"))
    return roles


def _unembedded(flow: Flow, roles: dict[Dim, str]) -> list[Dim]:
    """The atoms of outputs that are as wide as the largest table: scores of its entries."""
    widest = max((d.size for role, d in flow.roles if role == "vocabulary"), default=0)
    output = next(n for n in flow.program.module.graph.nodes if n.op == "output")
    ends = (flow.of(result)[-1].root for result in output.all_input_nodes if flow.of(result))
    return [dim for dim in ends if dim.size == widest and roles.get(dim) == "ffn"]


def _width_site(sites: Sites, name: str, atom: Dim) -> Site:
    weights = carriers(sites.flow, atom)
    module = sites.program.module
    axis = sites.axes[name]
    chosen = axis == "vocabulary"
    reasons = (reason for reason in atom.frozen if not (chosen and reason == OUTPUT))
    return Site(
        name,
        axis,
        atom.size,
        why_not=next(reasons, None),
        inexact=next(iter(atom.inexact), None),
        opt_in=VOCABULARY_OPT_IN if chosen else None,
        parameters=sum(get_attribute(module, p).numel() for p in {path for path, _ in weights}),
        weights=weights,
    )


def _depth_site(sites: Sites, name: str, axis: str, parts: tuple[Residual, ...]) -> Site:
    paths = {path for part in parts for path in part.weights}
    tensors = (get_attribute(sites.program.module, path) for path in paths)
    return Site(name, axis, 1, parameters=sum(tensor.numel() for tensor in tensors))


def _rank_site(sites: Sites, table: Table) -> Site:
    tensor = get_attribute(sites.program.module, table.path)
    weights = ((table.path, 0), (table.path, 1))
    return Site(
        table.name,
        "rank",
        min(tensor.shape),
        table.why_not,
        parameters=tensor.numel(),
        weights=weights,
    )
