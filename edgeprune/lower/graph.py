"""The workbench of lowering: read shapes from an ATen graph and put new nodes into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

aten = torch.ops.aten


def propagate(module: GraphModule, inputs: Sequence[torch.Tensor]) -> None:
    """Write every node's shape and type for these static ``inputs`` into ``node.meta["val"]``."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    FakeTensorProp(module, mode).propagate(*inputs)


def shape_of(node: Node) -> tuple[int, ...]:
    """The node's static shape."""
    return tuple(int(size) for size in node.meta["val"].shape)


def is_call(node: object, *targets: Callable[..., Any]) -> bool:
    """Whether ``node`` calls one of these ATen operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An operator's argument, given by position or by name."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def emit(graph: torch.fx.Graph, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
    """Insert a call at the graph's insertion point and compute its ``meta["val"]``."""
    node = graph.call_function(target, args, kwargs)
    values, named = map_arg((args, kwargs), lambda source: source.meta["val"])
    node.meta["val"] = target(*values, **named)
    return node


def constant(module: GraphModule, name: str, value: torch.Tensor, like: Node) -> Node:
    """Insert a new buffer at the graph's insertion point.

    Args:
        like: any node with a propagated value, for the fake mode it lives in.
    """
    unique, number = name, 0
    while hasattr(module, unique):
        number += 1
        unique = f"{name}_{number}"
    module.register_buffer(unique, value.detach().contiguous())
    node = module.graph.get_attr(unique)
    fake = like.meta["val"]
    assert isinstance(fake, FakeTensor)
    node.meta["val"] = fake.fake_mode.from_tensor(value.detach())
    return node


def attribute_of(module: GraphModule, node: object) -> torch.Tensor | None:
    """The tensor a ``get_attr`` node reads, or None for any other node."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, torch.Tensor) else None


def replace(old: Node, new: Node) -> None:
    """Let every reader of ``old`` read ``new`` and take ``old`` out."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
