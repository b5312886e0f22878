"""The Program noun: a canonical graph with its weights that runs, trains, saves and reloads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.files import FORMAT_VERSION, check_version, write_bytes
from edgeprune.program.fit import Resized
from edgeprune.program.graph import get_attribute, is_call, op_name, tensors_read

META_FILE = "edgeprune.json"


@dataclass(frozen=True)
class Program:
    """A captured model.

    Attributes:
        module: unlifted ATen graph in canonical form; dim 0 of every input is the batch, of any
            size; eval mode. It trains like any module.
        example_inputs: one batch of at least 2 examples.
        input_names, output_names: the model's interface, in order.
        meta: free text that travels with the weights: ``licence``, ``preprocessing``.
        resized: how inputs of the original's size become inputs of this program, in order.
    """

    module: fx.GraphModule
    example_inputs: tuple[torch.Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    meta: dict[str, str] = field(default_factory=dict)
    resized: tuple[Resized, ...] = ()

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The model's output: a tensor, or a tuple where it has several.

        Inputs of the size that the original takes are brought to this program's first.
        """
        return self.module(*self.fit(inputs))

    def fit(self, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """A batch of the original's size as this program (and what it is lowered to) takes it.

        One that has this program's size already stays as it is.
        """
        for each in self.resized:
            batch = each(batch)
        return batch

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Path -> weight or buffer that the graph reads."""
        return tensors_read(self.module)

    @property
    def parameters(self) -> int:
        """Number of trainable weights."""
        return sum(
            tensor.numel()
            for tensor in self.tensors.values()
            if isinstance(tensor, torch.nn.Parameter)
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of all weights and buffers; what two names share counts once."""
        apart = {tensor.data_ptr(): tensor for tensor in self.tensors.values()}
        return sum(t.numel() * t.element_size() for t in apart.values())

    @cached_property
    def fingerprint(self) -> str:
        """A hash over the computation and every weight; node names and order do not matter."""
        hashes: dict[fx.Node, str] = {}
        inputs = (node for node in self.module.graph.nodes if node.op == "placeholder")
        hashes.update((node, f"input {index}") for index, node in enumerate(inputs))
        result = ""
        for node in self.module.graph.nodes:
            if node not in hashes:
                result = hashes[node] = _node_hash(self.module, node, hashes)
        return result[:32]

    def export(self, batch: int) -> torch.export.ExportedProgram:
        """The graph as an ExportedProgram with a fixed batch, for lowering."""
        inputs = tuple(_repeat_to(each, batch) for each in self.example_inputs)
        return torch.export.export(self.module, inputs, strict=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a ``.pt2`` that :meth:`load` and plain ``torch.export.load`` both read.

        Its example inputs are zeros and it names no source file: a file that is handed on takes
        nobody's data or folders along.
        """
        batch = torch.export.Dim("batch", min=1, max=65536)
        exported = torch.export.export(
            self.module,
            tuple(torch.zeros(each.shape, dtype=each.dtype) for each in self.example_inputs),
            dynamic_shapes=tuple({0: batch} for _ in self.example_inputs),
            strict=False,
        )
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)
        notes = {
            "version": FORMAT_VERSION,
            "input_names": self.input_names,
            "output_names": self.output_names,
            "meta": self.meta,
        }
        if self.resized:
            notes["resized"] = [asdict(each) for each in self.resized]

        # Through memory: torch's writer ends the process when the disk is full.
        written = io.BytesIO()
        torch.export.save(exported, written, extra_files={META_FILE: json.dumps(notes)})
        return write_bytes(path, written.getvalue())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as it is saved: a graph's own pickle is traced again, and loses its names."""
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            data = self.save(Path(folder, "program.pt2")).read_bytes()
        return _unpickled, (data, self.example_inputs)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Program:
        """Read a program that :meth:`save` wrote.

        Raises:
            InputError: missing, cut short, or no program of ours.
        """
        from edgeprune.program.capture import from_exported, load_exported

        exported, notes = load_exported(path)
        if notes is None:
            raise InputError(f"{path}: a .pt2, but not written by edgeprune. Capture it first.")
        check_version(path, notes.get("version"))
        program = from_exported(
            exported,
            input_names=tuple(notes["input_names"]),
            output_names=tuple(notes["output_names"]),
            meta=notes["meta"],
        )
        resized = tuple(Resized.from_json(each) for each in notes.get("resized", ()))
        return replace(program, resized=resized)


def _unpickled(data: bytes, example_inputs: tuple[torch.Tensor, ...]) -> Program:
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        loaded = Program.load(write_bytes(Path(folder, "program.pt2"), data))
    return replace(loaded, example_inputs=example_inputs)


def _node_hash(module: fx.GraphModule, node: fx.Node, hashes: dict[fx.Node, str]) -> str:
    digest = hashlib.sha256(f"{node.op} {op_name(node)} ".encode())
    if node.op == "get_attr":
        tensor = get_attribute(module, str(node.target)).detach()
        digest.update(f"{node.target} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    elif is_call(node, torch.ops.aten.sym_size):
        digest.update(b"batch")  # whichever input it was read from
    else:
        digest.update(str(fx.map_arg(_all_arguments(node), lambda n: hashes[n])).encode())
    return digest.hexdigest()


def _all_arguments(node: fx.Node) -> Any:
    """The node's arguments by name, defaults filled in: two spellings of one call are one."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return (node.args, dict(node.kwargs))
    schema = node.target._schema.arguments
    given = {each.name: arg for each, arg in zip(schema, node.args, strict=False)}
    return {each.name: each.default_value for each in schema} | given | dict(node.kwargs)


def _repeat_to(tensor: torch.Tensor, batch: int) -> torch.Tensor:
    times = -(-batch // tensor.shape[0])
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))[:batch].clone()


def check_outputs_equal(
    program: Program,
    inputs: tuple[torch.Tensor, ...],
    reference: tuple[torch.Tensor, ...],
    tolerance: float,
) -> None:
    """Compare the program's outputs on ``inputs`` with ``reference``.

    Raises:
        EdgepruneError: they differ by more than ``tolerance`` (relative to the largest value).
    """
    with torch.no_grad():
        ours = program(*inputs)
    pairs = zip(as_tuple(ours), reference, strict=True)
    for name, (got, wanted) in zip(program.output_names, pairs, strict=True):
        if got.shape != wanted.shape:
            raise EdgepruneError(
                f"capture: output '{name}' has shape {tuple(got.shape)}, wanted "
                f"{tuple(wanted.shape)} as the model's. Please report it with the model's code."
            )
        scale = max(1.0, float(wanted.double().abs().max()))
        error = float((got.double() - wanted.double()).abs().max()) / scale
        if not error <= tolerance:
            raise EdgepruneError(
                f"capture: output '{name}' moved by {error:.2g}, wanted at most {tolerance:.0e}. "
                "The model is not the same after capture; please report it with the model's code."
            )


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Model outputs as a tuple."""
    return (
        outputs
        if isinstance(outputs, tuple)
        else tuple(outputs if isinstance(outputs, list) else (outputs,))
    )


def parameter_names(module: fx.GraphModule) -> list[str]:
    """Paths of the trainable tensors that the graph reads, sorted.

    Not in the graph's order: a program saved and loaded may read its weights in another.
    """
    return sorted(
        name
        for name, tensor in tensors_read(module).items()
        if isinstance(tensor, torch.nn.Parameter)
    )
