"""Which number of a configuration moves which dimensions: found by turning it, family by family.

No list of architectures: a model is built without storage from a changed configuration, and its
shapes are compared. What a number moves says what it must become for the shapes that are wanted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Key: TypeAlias = tuple[str | int, ...]
"""Where a number stands: ``("intermediate_size",)``, ``("hidden_sizes", 2)``."""
Shapes: TypeAlias = dict[str, tuple[int, ...]]
Place: TypeAlias = tuple[str, int]
"""A tensor and one of its dimensions."""


@dataclass(frozen=True)
class Move:
    """What turning one number does.

    Attributes:
        value: the number as it is.
        turned: what it was turned to.
        sizes: (tensor, dimension) -> (size as it is, size when turned).
        names_gone: tensors that are no longer there when turned.
    """

    value: int
    turned: int
    sizes: dict[Place, tuple[int, int]]
    names_gone: frozenset[str]

    def value_for(self, wanted: Shapes) -> int | None:
        """What gives the wanted sizes; None where no one value does."""
        values = set()
        for (name, dimension), (now, then) in self.sizes.items():
            slope = (then - now) / (self.turned - self.value)
            values.add(self.value + (wanted[name][dimension] - now) / slope)
        found = values.pop() if len(values) == 1 else None
        return int(found) if found is not None and found >= 1 and found == int(found) else None


class Builder:
    """Builds a model's class from changed configurations.

    Args:
        model: whose class and configuration it starts from.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.kind: Any = type(model)
        self.config: Any = type(model.config)

    def shapes(self, config: dict[str, Any]) -> Shapes | None:
        """Shapes of every tensor in the state, or None where the class refuses."""
        try:
            with torch.device("meta"):
                model = self.build(config)
        except Exception:  # a class checks its own configuration in its own way
            return None
        return {name: tuple(t.shape) for name, t in model.state_dict().items()}

    def build(self, config: dict[str, Any]) -> PreTrainedModel:
        """A model with that configuration."""
        built: PreTrainedModel = self.kind(self.config.from_dict(copy.deepcopy(config)))
        return built

    def move(self, config: dict[str, Any], key: Key, base: Shapes) -> Move | None:
        """What one number moves; None where it moves nothing, or cannot be turned."""
        value = read(config, key)
        for turned in (value - 1, value // 2, 2 * value):
            if turned < 1 or turned == value:
                continue
            found = self.shapes(changed(config, {key: turned}))
            if found is None or any(len(found.get(n, s)) != len(s) for n, s in base.items()):
                continue
            sizes = {
                (name, i): (now, then)
                for name, shape in base.items()
                if name in found
                for i, (now, then) in enumerate(zip(shape, found[name], strict=True))
                if now != then
            }
            gone = frozenset(base.keys() - found.keys())
            return Move(value, turned, sizes, gone) if sizes or gone else None
        return None


def numbers(config: Any, at: Key = ()) -> Iterator[tuple[Key, int]]:
    """Every whole number above 1 in a configuration, and where it stands."""
    if isinstance(config, Mapping):
        for name, inner in config.items():
            yield from numbers(inner, (*at, name))
    elif isinstance(config, list | tuple):
        for i, inner in enumerate(config):
            yield from numbers(inner, (*at, i))
    elif isinstance(config, int) and not isinstance(config, bool) and config > 1:
        yield at, config


def read(config: Any, key: Key) -> Any:
    """The entry at a key."""
    for word in key:
        config = config[word]
    return config


def changed(config: dict[str, Any], values: Mapping[Key, Any]) -> dict[str, Any]:
    """A copy with some entries changed."""
    copied = copy.deepcopy(config)
    for key, value in values.items():
        holder = read(copied, key[:-1])
        if isinstance(holder, tuple):  # of numbers, as some configurations keep them
            holder = list(holder)
            _put(copied, key[:-1], holder)
        holder[key[-1]] = value
    return copied


def _put(config: dict[str, Any], key: Key, value: Any) -> None:
    read(config, key[:-1])[key[-1]] = value
