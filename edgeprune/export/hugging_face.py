"""A slim model as a Hugging Face folder, where a configuration of its class can say it.

The configuration is inferred from the slim weights' names and shapes, and proved: the model that
transformers builds from it must load every weight and give the slim program's outputs.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.export.folder import PREFIX, Folder, wrap
from edgeprune.export.probe import Builder, Key, Move, Place, Shapes, changed, numbers, read
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.sites import Sites

TOLERANCE = 1e-4
# Numbers changed at once: all subsets of so many are tried.
MOST_CHANGES = 8
_BLOCK = re.compile(r"^(.*?)\b(\d+)\.")


@dataclass(frozen=True)
class Exported:
    """A folder that was written.

    Attributes:
        path: of the folder.
        changes: number of ``config.json`` -> (before, after).
        difference: the largest between the folder's model and the slim program, relative to the
            largest output.
    """

    path: Path
    changes: dict[str, tuple[int, int]]
    difference: float


def export_folder(
    folder: Folder, sites: Sites, plan: Plan, slim: Program, out: str | os.PathLike[str]
) -> Exported:
    """Write a slim model as ``config.json`` and ``model.safetensors``.

    Args:
        folder: the original.
        sites: of the original's program.
        plan: what was cut.
        slim: the cut program, perhaps recovered since.
        out: the folder to write, not there yet or empty.

    Raises:
        InputError: no configuration of the model's class says the cut (why not, site by site), or
            the folder cannot be written.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is there already. Give --out a new or empty folder.")
    search = _Search(folder, sites, plan, slim)
    config, changes, difference = search.run()
    model = search.loaded(config)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target}: cannot write here ({error.strerror or error})") from error
    try:
        model.save_pretrained(temporary)
        temporary.chmod(0o755)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target}: writing failed ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(target, changes, difference)


class _Search:
    """Looks for the configuration of one slim model."""

    def __init__(self, folder: Folder, sites: Sites, plan: Plan, slim: Program) -> None:
        self.folder, self.sites, self.plan, self.slim = folder, sites, plan, slim
        self.builder = Builder(folder.model)
        self.original: dict[str, Any] = folder.model.config.to_dict()
        self.renamed = _Renumbering(_read_by(sites.program), _read_by(slim))
        self.state = self._state()
        self.wanted: Shapes = {name: tuple(t.shape) for name, t in self.state.items()}

    def run(self) -> tuple[dict[str, Any], dict[str, tuple[int, int]], float]:
        """(configuration, what changed, largest difference)."""
        self._check_possible()
        config = self._shallower()
        base = self.builder.shapes(config)
        if base is None or base.keys() != self.wanted.keys():
            raise InputError(self._refusal(["no number of config.json gives as many layers"]))
        moves = self._moves(config, base)
        values = {key: value for key, move in moves.items() if (value := self._value(move))}
        values |= self._silent(config, moves)
        for subset in _subsets(values):
            tried = changed(config, {key: values[key] for key in subset})
            if self.builder.shapes(tried) == self.wanted:
                difference = self._difference(tried)
                if difference <= TOLERANCE:
                    return tried, self._changes(tried), difference
        raise InputError(self._refusal(self._unexplained(base, moves, values)))

    def loaded(self, config: dict[str, Any]) -> Any:
        """The model with the slim weights."""
        model = self.builder.build(config)
        model.load_state_dict(self.state)
        return model.eval()

    @torch.no_grad()
    def _difference(self, config: dict[str, Any]) -> float:
        inputs = self.slim.fit(self.folder.inputs)
        wanted = self.slim(*inputs)
        try:
            got = wrap(self.loaded(config), self.folder.input_names)(*inputs)
        except (RuntimeError, ValueError):  # right shapes, and yet nothing that runs
            return float("inf")
        if got.shape != wanted.shape:
            return float("inf")
        gap = float((got - wanted).abs().max())
        return gap / max(float(wanted.abs().max()), 1e-30)

    def _state(self) -> dict[str, Tensor]:
        """Every entry of the original's state as the slim model has it, renumbered.

        What the program does not read (a pooler whose output is not asked for) stays as it was.
        """
        whole = self.folder.model.state_dict(keep_vars=True)
        slim = {_bare(path): tensor for path, tensor in self.slim.tensors.items()}
        read = _read_by(self.sites.program)
        stored = {whole[name].data_ptr(): name for name in read if name in whole}
        found = {}
        for name, tensor in whole.items():
            new = self.renamed(name)
            if new is None:
                continue
            known = name if name in read else stored.get(tensor.data_ptr(), name)
            found[new] = slim.get(known, tensor).detach().clone()
        return found

    def _check_possible(self) -> None:
        """What no configuration says: sub-layers alone, selected tokens, other ids, factors."""
        reasons = [f"{name}: transformers selects no tokens" for name in self.plan.tokens]
        reasons += [f"{name}: transformers keeps a table whole" for name in self.plan.rank]
        read, left = _read_by(self.sites.program), _read_by(self.slim)
        for name, units in self.plan.kept.items():
            if self.sites.get(name).axis == "vocabulary":
                reasons.append(f"{name}: transformers maps no old ids to those that are left")
            if not units and self.sites.get(name).axis == "sublayer":
                gone = next(r for r in self.sites.residuals if r.name == name).weights
                stem = _block(_bare(gone[0]))
                if any(_block(path) == stem for path in read & left):
                    reasons.append(f"{name}: a configuration drops whole layers alone")
        if reasons:
            raise InputError(self._refusal(reasons))

    def _shallower(self) -> dict[str, Any]:
        """The original's configuration with as many layers as are left."""
        config, shapes = self.original, self.builder.shapes(self.original)
        for key, value in numbers(config):
            if shapes is None or shapes.keys() == self.wanted.keys():
                break
            move = self.builder.move(config, key, shapes)
            if move is None or not move.names_gone:
                continue
            left = self.renamed.left(next(iter(move.names_gone)))
            if left is not None and 0 < len(left) < value:
                lists = {
                    at: [entries[i] for i in left]
                    for at, entries in _lists(config)
                    if len(entries) == value
                }
                config = changed(config, {key: len(left), **lists})
                shapes = self.builder.shapes(config)
        return config

    def _moves(self, config: dict[str, Any], base: Shapes) -> dict[Key, Move]:
        if base == self.wanted:
            return {}
        found = {key: self.builder.move(config, key, base) for key, _ in numbers(config)}
        return {key: move for key, move in found.items() if move and not move.names_gone}

    def _value(self, move: Move) -> int | None:
        """What the number must become; None where it may stay, or where no value will do."""
        value = move.value_for(self.wanted)
        return None if value == move.value else value

    def _silent(self, config: dict[str, Any], moves: Mapping[Key, Move]) -> dict[Key, int]:
        """Numbers whose value no shape tells: heads that share out the width, sizes of inputs."""
        cut = {
            self.sites.get(name).units: len(units)
            for name, units in self.plan.kept.items()
            if self.sites.get(name).axis in ("heads", "kv_groups", "queries_per_group")
        }
        sizes = {self.sites.get(name).units: size for name, size in self.plan.length.items()}
        known = {key: sizes[n] for key, n in numbers(config) if n in sizes}
        return known | {key: cut[n] for key, n in numbers(config) if key not in moves and n in cut}

    def _unexplained(
        self, base: Shapes, moves: Mapping[Key, Move], values: Mapping[Key, int]
    ) -> list[str]:
        """One line a site whose cut no number gives."""
        reached: dict[Place, list[Key]] = defaultdict(list)
        for key, move in moves.items():
            for place in move.sizes:
                reached[place].append(key)
        lines = []
        for name, units in self.plan.kept.items():
            if not units:
                continue
            site = self.sites.get(name)
            places = [(self.renamed(_bare(path)), axis) for path, axis in site.weights]
            known = [(n, axis) for n, axis in places if n is not None and n in base]
            stuck = [p for p in known if not any(key in values for key in reached[p])]
            if not stuck:
                continue
            keys = sorted({".".join(map(str, key)) for key in reached[stuck[0]]})
            why = (
                f"{', '.join(keys)} also sizes what the plan cuts otherwise, or not at all"
                if keys
                else "no number of config.json sizes them alone"
            )
            lines.append(f"{name}: keeps {len(units)} of {site.units} {site.axis}, but {why}")
        return lines or ["no combination of the numbers gives the slim model's outputs"]

    def _refusal(self, reasons: list[str]) -> str:
        kind = type(self.folder.model).__name__
        return f"export-hf: {kind} cannot express this plan:\n  " + "\n  ".join(reasons)

    def _changes(self, config: dict[str, Any]) -> dict[str, tuple[int, int]]:
        known = set(dict(numbers(self.original)))
        pairs = {key: (read(self.original, key), _read_or_none(config, key)) for key in known}
        return {
            ".".join(map(str, key)): (before, after)
            for key, (before, after) in sorted(pairs.items(), key=str)
            if after is not None and after != before
        }


class _Renumbering:
    """Name of a tensor -> its name once the layers that are left are numbered anew."""

    def __init__(self, before: set[str], after: set[str]) -> None:
        self._left: dict[str, list[int]] = {}
        indices: dict[str, set[int]] = defaultdict(set)
        remain: dict[str, set[int]] = defaultdict(set)
        for names, found in ((before, indices), (after, remain)):
            for name in names:
                if match := _BLOCK.match(name):
                    found[match[1]].add(int(match[2]))
        for stem in indices:
            self._left[stem] = sorted(remain[stem])

    def __call__(self, name: str) -> str | None:
        """The new name; None where the layer is gone."""
        match = _BLOCK.match(name)
        if not match or match[1] not in self._left:
            return name
        left = self._left[match[1]]
        if int(match[2]) not in left:
            return None
        return f"{match[1]}{left.index(int(match[2]))}.{name[match.end() :]}"

    def left(self, name: str) -> list[int] | None:
        """Numbers of the layers that are left where this tensor's layer is one of."""
        match = _BLOCK.match(name)
        return self._left.get(match[1]) if match else None


def _block(name: str) -> str | None:
    match = _BLOCK.match(name)
    return match[0] if match else None


def _read_by(program: Program) -> set[str]:
    return {_bare(path) for path in program.tensors}


def _read_or_none(config: dict[str, Any], key: Key) -> Any:
    """The entry, or None where a list has become shorter."""
    try:
        return read(config, key)
    except (IndexError, KeyError):
        return None


def _bare(path: str) -> str:
    """A weight's name without the wrapper's."""
    return path.removeprefix(PREFIX)


def _lists(config: Any, at: Key = ()) -> Iterator[tuple[Key, list[Any]]]:
    """Every list of a configuration: one of as many entries as layers has one for each."""
    if isinstance(config, Mapping):
        for name, inner in config.items():
            yield from _lists(inner, (*at, name))
    elif isinstance(config, list | tuple):
        yield at, list(config)


def _subsets(values: Mapping[Key, int]) -> Iterator[tuple[Key, ...]]:
    """The fewest changes first."""
    keys = list(values)[:MOST_CHANGES]
    return chain.from_iterable(combinations(keys, n) for n in range(len(keys) + 1))
