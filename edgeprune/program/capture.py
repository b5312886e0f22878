"""Capture: a PyTorch model -> Program, through one torch.export and a few canonicalising passes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from edgeprune.errors import InputError
from edgeprune.program.canonicalise import canonicalise
from edgeprune.program.program import META_FILE, Program, as_tuple, check_outputs_equal
from edgeprune.program.refusals import check_graph, check_weights, raised_at

CAPTURE_TOLERANCE = 1e-5


def capture(
    model: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    meta: dict[str, str] | None = None,
) -> Program:
    """Capture ``model`` as a :class:`Program` and check that its outputs stay within 1e-5.

    They are compared on the examples and on a batch one larger, so that no size is baked in.

    Args:
        model: any module that ``torch.export`` accepts; taken in eval mode.
        example_inputs: positional tensors, dim 0 the batch, at least 2 examples (a batch of 1
            would be baked into the graph).
        input_names, output_names: the interface; by default the forward's own argument names.
        meta: free text kept with the program.

    Raises:
        InputError: wrong example inputs, the model fails on them, or torch cannot export it.
    """
    inputs = tuple(example_inputs)
    _check_examples(inputs)
    larger = tuple(torch.cat([each, each[:1]]) for each in inputs)
    model.eval()
    batch = torch.export.Dim("batch", min=1, max=65536)
    printed = io.StringIO()
    with _quiet(), torch.no_grad():
        reference = _run(model, inputs, "its own example inputs")
        try:
            # torch prints the graph so far when it gives up.
            with contextlib.redirect_stderr(printed):
                exported = torch.export.export(
                    model, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
                )
        except Exception as error:
            raise InputError(
                f"torch.export cannot capture {type(model).__name__}{raised_at(error)}: "
                f"{_first_line(error)} (see -v for the whole story)",
                detail=f"{error}\n{printed.getvalue()}",
            ) from error
        reference_larger = _run(model, larger, "a batch one larger than its example inputs")
    program = from_exported(exported, input_names, output_names, meta)
    check_outputs_equal(program, inputs, reference, CAPTURE_TOLERANCE)
    check_outputs_equal(program, larger, reference_larger, CAPTURE_TOLERANCE)
    return program


def from_exported(
    exported: torch.export.ExportedProgram,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    meta: dict[str, str] | None = None,
) -> Program:
    """A Program from an ExportedProgram with a dynamic batch (our own, or a user's ``.pt2``)."""
    if exported.example_inputs is None:
        raise InputError("the exported program has no example inputs; export it again with them")
    inputs = tuple(exported.example_inputs[0])
    check_graph(exported.graph)
    with _quiet():
        if _works_in_place(exported.graph):
            exported = exported.run_decompositions({})
        module = exported.module(check_guards=False)
    check_weights(module)
    _flatten_output(module)
    places = [n for n in module.graph.nodes if n.op == "placeholder"]
    if len(places) != len(inputs):
        raise InputError(
            f"the model takes {len(places)} tensors, but {len(inputs)} positional examples "
            "came with it. Give every input as a positional tensor."
        )
    # A plain GraphModule: torch's own checks inputs against the example's batch size.
    module = torch.fx.GraphModule(module, module.graph)
    canonicalise(module, inputs)
    outputs = as_tuple(next(n for n in module.graph.nodes if n.op == "output").args[0])
    taken = _names("input", input_names, [n.name for n in places])
    given = _names("output", output_names, _default_outputs(len(outputs)))
    return Program(module, inputs, taken, given, dict(meta or {}))


def load_exported(
    path: str | os.PathLike[str],
) -> tuple[torch.export.ExportedProgram, dict[str, Any] | None]:
    """Read a ``.pt2``; the notes are None when edgeprune did not write it.

    Raises:
        InputError: missing, cut short, or not a ``.pt2``.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    extra = {META_FILE: ""}
    try:
        with _quiet(), open(path, "rb") as stream:
            exported = torch.export.load(stream, extra_files=extra)
    except Exception as error:
        raise InputError(
            f"{path}: not a readable .pt2 ({_first_line(error)}). Was the file cut short? "
            "Save it again with torch.export.save.",
            detail=str(error),
        ) from error
    return exported, json.loads(extra[META_FILE]) if extra[META_FILE] else None


def _run(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], what: str
) -> tuple[torch.Tensor, ...]:
    try:
        return _tensors_of(model(*inputs))
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} fails on {what}{raised_at(error)}: {_first_line(error)} "
            "(see -v for the whole story)",
            detail=str(error),
        ) from error


def _works_in_place(graph: torch.fx.Graph) -> bool:
    """Whether an operator writes into one of its inputs, as ``x += y`` does."""
    targets = (node.target for node in graph.nodes)
    return any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in targets)


def _check_examples(inputs: tuple[torch.Tensor, ...]) -> None:
    for position, each in enumerate(inputs):
        if not isinstance(each, torch.Tensor) or each.ndim == 0 or each.shape[0] < 2:
            got = tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__
            raise InputError(
                f"example input {position}: got {got}, wanted a tensor whose first dimension is "
                "a batch of at least 2 examples"
            )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _tensors_of(outputs: Any) -> tuple[torch.Tensor, ...]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def _default_outputs(count: int) -> list[str]:
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _names(what: str, asked: Sequence[str] | None, own: Sequence[str]) -> tuple[str, ...]:
    if asked and len(asked) != len(own):
        raise InputError(
            f"got {len(asked)} {what} names ({', '.join(asked)}), wanted {len(own)}: the model's "
            f"{what}s are {', '.join(own)}"
        )
    return tuple(asked or own)


def _flatten_output(module: torch.fx.GraphModule) -> None:
    """Let the graph take and return plain tensors, whatever structure the model returned."""
    output = next(n for n in module.graph.nodes if n.op == "output")
    leaves, _ = torch.utils._pytree.tree_flatten(output.args[0])
    kept = tuple(leaf for leaf in leaves if isinstance(leaf, torch.fx.Node))
    output.args = (kept[0] if len(kept) == 1 else kept,)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own chatter out of the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)
