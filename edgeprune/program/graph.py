"""Small tools for reading and editing fx graphs, shared by capture, analysis and surgery."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

ATEN = torch.ops.aten

# A mask entry that softmax turns into 0. Finite, so that a fully masked row attends evenly
# instead of giving NaN, and so that 0 x mask stays 0 when a selection matrix multiplies it.
MASKED = -1e9


def op_name(node: fx.Node) -> str:
    """``aten.linear.default`` style name of a call_function node, else its opcode."""
    if node.op != "call_function":
        return node.op
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def is_call(node: object, *targets: Any) -> bool:
    """Whether ``node`` calls one of ``targets`` (overloads or packets)."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return node.target in targets or (packet is not None and packet in targets)


def get_attribute(module: torch.nn.Module, path: str) -> Any:
    """The attribute at a dotted path."""
    return operator.attrgetter(path)(module)


def set_tensor(module: torch.nn.Module, path: str, value: torch.Tensor) -> None:
    """Put a parameter or buffer at a dotted path, making empty modules on the way."""
    *parents, leaf = path.split(".")
    owner = module
    for name in parents:
        if not hasattr(owner, name):
            owner.add_module(name, torch.nn.Module())
        owner = getattr(owner, name)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    if isinstance(value, torch.nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)


def tensors_read(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Path -> tensor of every weight and buffer that the graph reads, in order of first read."""
    return {
        str(node.target): get_attribute(module, str(node.target))
        for node in module.graph.nodes
        if node.op == "get_attr"
    }


def drop_unread(module: fx.GraphModule) -> None:
    """Remove dead nodes, then every weight and buffer that no node reads."""
    drop_dead(module.graph)
    read = tensors_read(module)
    named = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    named += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    for name in named:
        if name not in read:
            owner_path, _, leaf = name.rpartition(".")
            delattr(get_attribute(module, owner_path) if owner_path else module, leaf)
    module.delete_all_unused_submodules()
    module.recompile()


def drop_dead(graph: fx.Graph) -> None:
    """Remove nodes that nothing reads; also attention, which torch keeps for its dropout's sake."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))


def value(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor recorded for ``node`` by :func:`annotate`, or None for a non-tensor."""
    found = node.meta.get("val")
    return found if isinstance(found, torch.Tensor) else None


def shape(node: fx.Node) -> tuple[int, ...]:
    """The node's shape at the example batch."""
    found = value(node)
    return () if found is None else tuple(int(size) for size in found.shape)


def slice_arguments(node: fx.Node) -> tuple[Any, ...]:
    """(axis, start, end, step) of a slice."""
    given = tuple(node.args[1:])
    return given + (0, None, None, 1)[len(given) :]


def is_size(node: fx.Node) -> bool:
    """Whether the node computes a number, such as the batch size, and no tensor."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


class Memo:
    """What calls gave before: between two annotations of a graph most of it is as it was.

    Attributes:
        mode: of all the fake tensors.
        calls: (target, arguments) -> result, and the arguments, whose ids are in the key.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.calls: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def annotate(
    module: fx.GraphModule, example_inputs: Iterable[torch.Tensor], memo: Memo | None = None
) -> None:
    """Record every node's shape and dtype at the example batch in ``meta['val']``."""
    for node, found in fake_values(module, example_inputs, memo).items():
        node.meta["val"] = found


def fake_values(
    module: fx.GraphModule, example_inputs: Iterable[torch.Tensor], memo: Memo | None = None
) -> dict[fx.Node, Any]:
    """What every node computes for these inputs, as shapes and dtypes without numbers."""
    known = memo or Memo()
    found: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and not isinstance(result, FakeTensor):
                result = known.mode.from_tensor(result)
            found[n] = result
            return result

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            key = (target, _frozen(args), _frozen(kwargs))
            if key not in known.calls:
                result = super().call_function(target, args, kwargs)
                known.calls[key] = (result, (args, kwargs))
            return known.calls[key][0]

    with known.mode:
        Recorder(module).run(*(known.mode.from_tensor(each) for each in example_inputs))
    return found


def _frozen(value: Any) -> Any:
    """A key for an argument: tensors by who they are, numbers by type too, for 1 is not 1.0."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(each)) for name, each in value.items())
    if isinstance(value, (torch.Tensor, torch.nn.Module)) or not isinstance(value, Hashable):
        return id(value)
    return type(value), value


def one_more(inputs: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The inputs as a batch one larger, by which to tell sizes that follow the batch."""
    return tuple(torch.cat([each, each[:1]]) for each in inputs)


def emit(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call at the graph's insertion point, with its shape and dtype recorded."""
    node = graph.call_function(target, args, kwargs)
    given, named = fx.map_arg((args, kwargs), lambda each: each.meta["val"])
    tensors = (each.meta.get("val") for each in graph.nodes)
    mode = next(each.fake_mode for each in tensors if isinstance(each, FakeTensor))
    with mode, torch.no_grad():
        node.meta["val"] = target(*given, **named)
    return node


def ancestors(node: fx.Node) -> set[fx.Node]:
    """Everything that ``node`` is computed from, itself included."""
    return _reach(node, lambda each: each.all_input_nodes)


def descendants(node: fx.Node) -> set[fx.Node]:
    """Everything computed from ``node``, itself included."""
    return _reach(node, lambda each: each.users)


def _reach(node: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    seen = {node}
    todo = [node]
    while todo:
        for other in step(todo.pop()):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def calls(graph: fx.Graph, *targets: Any) -> Iterator[fx.Node]:
    """The graph's calls of ``targets``, in order; safe to edit while reading."""
    yield from [node for node in graph.nodes if is_call(node, *targets)]


def replace(node: fx.Node, new: fx.Node) -> None:
    """Let every reader of ``node`` read ``new``, then erase ``node``."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def evaluate(
    module: fx.GraphModule, node: fx.Node, given: dict[fx.Node, Any], needed: set[fx.Node]
) -> Any:
    """Run only what ``node`` needs, with the values of some nodes given."""
    environment = dict(given)
    for each in module.graph.nodes:
        if each not in needed or each in environment:
            continue
        if each.op == "get_attr":
            environment[each] = get_attribute(module, str(each.target))
        elif each.op == "call_function":
            args, kwargs = fx.map_arg((each.args, each.kwargs), lambda n: environment[n])
            environment[each] = each.target(*args, **kwargs)
    return environment[node]
