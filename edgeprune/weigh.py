"""What is behind a site: the weights and the arithmetic that leave with its units.

Both are counted entry by entry from the dimension trees, as surgery slices them: a tensor that a
unit holds in two dimensions is counted once, a segment of a fused matrix is that segment alone.
Sites overlap (a neuron's weights are d_model's too), so that shares do not add up to one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from edgeprune.program.flops import PRODUCTS, flops
from edgeprune.program.graph import ATEN, calls, descendants, get_attribute, is_call, shape
from edgeprune.sites import Site, Sites
from edgeprune.sites.atoms import Dim, size_of
from edgeprune.sites.inputs import InputLength
from edgeprune.sites.sizes import nearest_size, sizes_at
from edgeprune.sites.tables import Table, table_readers


@dataclass(frozen=True)
class Leaving:
    """What leaves with some units.

    Attributes:
        parameters: trainable weights.
        flops: floating point operations per example, of matrix products, convolutions and
            attention; a multiplication and an addition are two.
    """

    parameters: int
    flops: int


@dataclass(frozen=True)
class Behind:
    """What is behind one site.

    Attributes:
        whole: what leaves with all units, or with the sub-layer; nobody cuts that much of a width,
            but it says how much the units share.
        half: what leaves with half of the units (rounded down); of depth, the same as ``whole``.
            Of tokens, what is spared afterwards: what selecting them costs is not taken off. Of an
            input's length, what leaves at the nearest size that is possible. Of a table, less than
            nothing leaves where its factors at half of the rank are more work than it is.
        shares_with: other width sites that hold dimensions of the same weights.
    """

    whole: Leaving
    half: Leaving
    shares_with: tuple[str, ...] = ()


class Scale:
    """Weighs the sites of one program."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.batch = sites.program.example_inputs[0].shape[0]

    @cached_property
    def total(self) -> Leaving:
        """The whole program."""
        return Leaving(sum(self._weights), self._per_example(sum(map(flops, self._products))))

    @cached_property
    def behind(self) -> dict[str, Behind]:
        """Site -> what is behind it, where its cut makes a dimension smaller."""
        found = {site.name: self._behind(site) for site in self.sites.sites}
        return {name: behind for name, behind in found.items() if behind is not None}

    def _behind(self, site: Site) -> Behind | None:
        if site.kind == "depth":
            whole = self._depth(site.name)
            return Behind(whole, whole)
        atom = self.sites.atoms.get(site.name)
        if atom is not None:
            return Behind(
                self._width(atom, 0),
                self._width(atom, site.units - site.units // 2),
                self._shares_with(site),
            )
        if site.name in self.sites.lengths:
            return self._length(self.sites.lengths[site.name])
        table = next((each for each in self.sites.tables if each.name == site.name), None)
        if table is not None:
            left = site.units - site.units // 2
            return Behind(self._rank(table, 0), self._rank(table, left))
        stream = next((s for s in self.sites.streams if s.name == site.name), None)
        if stream is None:
            return None
        later = descendants(stream.residual.add)
        size = stream.tokens.size
        return Behind(
            Leaving(0, self._flops(stream.tokens, 0, later)),
            Leaving(0, self._flops(stream.tokens, size - size // 2, later)),
        )

    def _width(self, atom: Dim, left: int) -> Leaving:
        sizes = {atom.root: left}
        return Leaving(
            self._cut_from(self._tensors_with[atom.root], sizes), self._flops(atom, left, None)
        )

    def _cut_from(self, paths: Iterable[str], sizes: Mapping[Dim, int]) -> int:
        """Weights that leave when dimensions of theirs have these sizes."""
        gone = 0
        for path in paths:
            dims = self.sites.flow.tensors[path]
            gone += math.prod(dim.size for dim in dims)
            gone -= math.prod(size_of(dim, sizes) for dim in dims)
        return gone

    def _depth(self, name: str) -> Leaving:
        layer = next((each for each in self.sites.layers if each.name == name), None)
        parts = layer.sublayers if layer else [r for r in self.sites.residuals if r.name == name]
        nodes = {node for part in parts for node in part.nodes}
        if layer:
            nodes |= {norm for part in parts for norm in part.closing_norms}
        weights = sum(self._tensors[path] for path in self._read_only_by(nodes))
        return Leaving(weights, self._per_example(sum(map(flops, nodes))))

    def _length(self, length: InputLength) -> Behind | None:
        """None where no smaller size is possible."""
        flow, total = self.sites.flow, self.total.flops
        size = nearest_size(flow, length.dims, length.size - length.size // 2)
        if size is None:
            return None
        new = sizes_at(flow, length.dims, size)
        left = sum(flops(node, lambda n: self._shape(n, new, None)) for node in self._products)
        half = Leaving(self._cut_from(self._tensors, new), total - self._per_example(left))
        return Behind(Leaving(0, total), half)

    def _rank(self, table: Table, rank: int) -> Leaving:
        program = self.sites.program
        entries, width = get_attribute(program.module, table.path).shape
        weights = entries * width - rank * (entries + width)
        gone = 0
        for reader in table_readers(program.module.graph, table.path):
            rows = math.prod(shape(reader)[:-1])
            gone += flops(reader) - 2 * rows * rank * width
            if is_call(reader, ATEN.linear):
                gone -= 2 * rows * rank * entries
        return Leaving(weights, self._per_example(gone))

    def _flops(self, dim: Dim, left: int, among: set[fx.Node] | None) -> int:
        sizes = {dim.root: left}
        gone = 0
        for node in {node for leaf in dim.leaves() for node in self._products_with[leaf]}:
            if among is None or node in among:
                gone += flops(node) - flops(node, lambda n: self._shape(n, sizes, among))
        return self._per_example(gone)

    def _shape(
        self, node: fx.Node, sizes: Mapping[Dim, int], among: set[fx.Node] | None
    ) -> tuple[int, ...]:
        """As it is once ``sizes`` are left; the same as before where that does not reach."""
        if among is not None and node not in among:
            return shape(node)
        return tuple(size_of(dim, sizes) for dim in self.sites.flow.of(node)) or shape(node)

    def _per_example(self, count: int) -> int:
        return count // self.batch

    def _shares_with(self, site: Site) -> tuple[str, ...]:
        mine = [path for path, _ in site.weights]
        names = (name for path in mine for name in self._sites_of[path])
        return tuple(name for name in dict.fromkeys(names) if name != site.name)

    def _read_only_by(self, nodes: set[fx.Node]) -> list[str]:
        """Trainable weights that nothing outside ``nodes`` reads."""
        readers: dict[str, set[fx.Node]] = defaultdict(set)
        for node in self.sites.program.module.graph.nodes:
            if node.op == "get_attr":
                readers[str(node.target)] |= set(node.users)
        return [path for path in self._tensors if readers[path] <= nodes]

    @cached_property
    def _products(self) -> tuple[fx.Node, ...]:
        return tuple(calls(self.sites.program.module.graph, *PRODUCTS))

    @cached_property
    def _tensors(self) -> dict[str, int]:
        """Path -> size of every trainable weight; one stored under two names counts once."""
        module = self.sites.program.module
        found: dict[str, int] = {}
        seen: set[int] = set()
        for path in self.sites.flow.tensors:
            tensor = get_attribute(module, path)
            if isinstance(tensor, torch.nn.Parameter) and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                found[path] = tensor.numel()
        return found

    @property
    def _weights(self) -> Iterable[int]:
        return self._tensors.values()

    @cached_property
    def _tensors_with(self) -> dict[Dim, list[str]]:
        """Atom -> paths of the trainable weights that hold it."""
        found: dict[Dim, list[str]] = defaultdict(list)
        for path in self._tensors:
            leaves = (leaf for dim in self.sites.flow.tensors[path] for leaf in dim.leaves())
            for leaf in dict.fromkeys(leaves):
                found[leaf].append(path)
        return found

    @cached_property
    def _products_with(self) -> dict[Dim, list[fx.Node]]:
        """Atom -> the products that read or give it."""
        flow = self.sites.flow
        found: dict[Dim, list[fx.Node]] = defaultdict(list)
        for node in self._products:
            dims = (dim for each in (node, *node.all_input_nodes) for dim in flow.of(each))
            for leaf in dict.fromkeys(leaf for dim in dims for leaf in dim.leaves()):
                found[leaf].append(node)
        return found

    @cached_property
    def _sites_of(self) -> dict[str, list[str]]:
        """Path -> width sites that hold a dimension of it."""
        found: dict[str, list[str]] = defaultdict(list)
        for site in self.sites.sites:
            for path in dict.fromkeys(path for path, _ in site.weights):
                found[path].append(site.name)
        return found
