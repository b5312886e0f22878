"""What no program can be made of, said with the node and the line of the user's model."""

from __future__ import annotations

import os
import re
import traceback

import torch
from torch import fx

from edgeprune.errors import InputError
from edgeprune.program.graph import op_name

FRAME = re.compile(r'File "([^"]+)", line (\d+)')
TORCH = os.path.dirname(torch.__file__)


def check_weights(module: torch.nn.Module) -> None:
    """Every weight is float32 or float64.

    Raises:
        InputError: one is not; names it.
    """
    for name, weight in module.named_parameters():
        kind = str(weight.dtype).removeprefix("torch.")
        if weight.is_complex():
            raise InputError(
                f"weight {name}: got {kind}, wanted float32. Write the layer with real weights "
                "(torch.view_as_real); neither runtime computes with complex numbers."
            )
        if not weight.is_floating_point():
            raise InputError(
                f"weight {name}: got {kind}, wanted float32: the model seems quantised already. "
                "Give the float model; --precision int8 quantises it after the cut."
            )
        if weight.itemsize < 4:
            raise InputError(
                f"weight {name}: got {kind}, wanted float32. Call .float() on the model; "
                "--precision says in which format it runs on the device."
            )


def check_graph(graph: fx.Graph) -> None:
    """Nothing is quantised yet, nothing drawn by chance, and no size but the batch left open.

    Raises:
        InputError: names the node and its line.
    """
    for node in graph.nodes:
        if "quant" in op_name(node).rpartition("aten.")[2].partition(".")[0]:
            raise InputError(
                f"{op_name(node)}{at(node)}: the model is quantised already. Give the float "
                "model; --precision int8 quantises it after the cut."
            )
        if _draws(node):
            raise InputError(
                f"{op_name(node)}{at(node)}: draws by chance in eval mode too, wanted the same "
                "outputs for the same inputs. Give a dropout training=self.training; take noise "
                "as an input."
            )
        if node.op == "placeholder":
            _check_sizes(node)


def _draws(node: fx.Node) -> bool:
    """Whether a call's result is random: a dropout's is in training only."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = {each.name: each.default_value for each in arguments} | dict(node.kwargs)
    given |= {each.name: value for each, value in zip(arguments, node.args, strict=False)}
    for switch in ("train", "training", "dropout_p"):
        if switch in given:
            return bool(given[switch])
    return True


def _check_sizes(node: fx.Node) -> None:
    example = node.meta.get("val")
    for axis, size in enumerate(getattr(example, "shape", ())):
        if axis and isinstance(size, torch.SymInt):
            raise InputError(
                f"input {node.name}: dimension {axis} is dynamic ({size}), wanted a fixed size: "
                "devices run fixed shapes. Export it with the batch alone dynamic."
            )


def at(node: fx.Node) -> str:
    """``, at model.py:12``: the line of the user's model that made the node, where it is known."""
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    return _line([(path, int(number)) for path, number in frames])


def raised_at(error: BaseException) -> str:
    """``, at model.py:12``: the innermost line outside of torch that an error went through."""
    frames: list[tuple[str, int]] = []
    found: BaseException | None = error
    while found is not None and not frames:
        trace = traceback.extract_tb(found.__traceback__)
        frames = [(f.filename, f.lineno or 0) for f in trace if _is_model(f.filename)]
        found = found.__cause__ or found.__context__
    return _line(frames)


def _line(frames: list[tuple[str, int]]) -> str:
    ours = [(path, number) for path, number in frames if _is_model(path)]
    return f", at {os.path.basename(ours[-1][0])}:{ours[-1][1]}" if ours else ""


def _is_model(path: str) -> bool:
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return path.endswith(".py") and not path.startswith((TORCH, own))
