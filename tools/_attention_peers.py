"""What a program would call instead of slim attention; a peer that is not installed is left out."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Engine:
    """One way to compute it.

    Attributes:
        run: computes, and returns the output in the engine's own form.
        flat: that output as ``[1, tokens, heads * head_dim]``.
    """

    run: Callable[[], Any]
    flat: Callable[[Any], Tensor] = lambda out: out


def peers(q: Tensor, k: Tensor, v: Tensor, heads: int) -> dict[str, Engine]:
    """All peers that can be had here, for one size.

    PyTorch's get tensors that are split into heads beforehand, in views; XNNPACK's time and ONNX
    Runtime's include the transposes, which those runtimes have to do.
    """
    split = [each.unflatten(2, (heads, -1)) for each in (q, k, v)]
    apart = [each.transpose(1, 2) for each in split]

    def joined(out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(2)

    found = {
        "torch SDPA": Engine(lambda: functional.scaled_dot_product_attention(*apart), joined),
        "torch matmul": Engine(lambda: _plain(*apart), joined),
        "plain C": _plain_c(q, k, v, heads),
        "XNNPACK + transposes": _xnnpack(q, k, v, heads),
    }
    if custom := _custom_sdpa():
        found["custom_sdpa"] = Engine(
            lambda: custom(*split, 0, None, 0.0, False, None), lambda out: out.flatten(2)
        )
    for name, nodes in (("ORT matmul + transposes", _ort_plain), ("ORT fused", _ort_fused)):
        if engine := _onnx_runtime(nodes, q, k, v, heads):
            found[name] = engine
    return found


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def _custom_sdpa() -> Any:
    """ExecuTorch's own attention kernel for language models, where its library loads."""
    try:
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401
    except (ImportError, OSError):
        return None
    return torch.ops.llama.custom_sdpa


def _plain_c(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Engine:
    tokens, width = q.shape[1:]
    held = [q, k, v, torch.empty_like(q), torch.empty(tokens)]
    places = [ctypes.c_void_p(each.data_ptr()) for each in held]

    def run() -> Tensor:
        _plain_library().plain_attention(*places, tokens, heads, width // heads)
        return held[3]

    return Engine(run)


@cache
def _plain_library() -> ctypes.CDLL:
    """plain_attention.c, as fast as a compiler makes it for this processor."""
    source = Path(__file__).with_name("plain_attention.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "plain.so")
        command = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-ffast-math"]
        subprocess.run(
            [*command, "-shared", "-fPIC", str(source), "-o", str(library), "-lm"], check=True
        )
        return ctypes.CDLL(str(library))


@cache
def _executorch() -> Any:
    """The runtime, told to use one thread."""
    from executorch.extension.pybindings import _C

    _C._unsafe_reset_threadpool(1)
    return _C


class _Attention(nn.Module):
    """Between the projections and back: what lowering finds in a model."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        apart = [each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (q, k, v)]
        out = functional.scaled_dot_product_attention(*apart, scale=1.0)
        return out.transpose(1, 2).flatten(2)


def _xnnpack(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Engine:
    """Two batch matmuls and a softmax, as our lowering makes them; queries are scaled beforehand,
    as their projection's weights would be."""
    from edgeprune.lower import Lowering, lower_graph

    inputs = [q * (q.shape[2] // heads) ** -0.5, k, v]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "attention.pte")
        path.write_bytes(
            lower_graph(_Attention(heads), inputs, Lowering("fp32", delegate="off")).data
        )
        program = _executorch()._load_program(str(path))
        method = program.load_method("forward")
    return Engine(lambda kept=program: method.call(inputs), lambda out: out[0])


def _onnx_runtime(
    nodes: Callable[..., list[Any]], q: Tensor, k: Tensor, v: Tensor, heads: int
) -> Engine | None:
    """A graph of these nodes, inputs and output bound to memory."""
    try:
        import onnxruntime as ort  # type: ignore[import-not-found]
        from onnx import TensorProto, helper  # type: ignore[import-not-found]
    except ImportError:
        return None
    shape = list(q.shape)
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkvo"
    }
    graph, sizes = (
        helper.make_graph(
            nodes(helper, heads),
            "attention",
            [values[name] for name in "qkv"],
            [values["o"]],
            [
                helper.make_tensor("apart", TensorProto.INT64, [4], [1, shape[1], heads, -1]),
                helper.make_tensor("whole", TensorProto.INT64, [3], shape),
            ],
        ),
        [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
    )
    model = helper.make_model(graph, opset_imports=sizes, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    bound, out = session.io_binding(), torch.empty_like(q)
    inputs = {"q": q * (q.shape[2] // heads) ** -0.5, "k": k, "v": v}
    held = {name: ort.OrtValue.ortvalue_from_numpy(x.numpy()) for name, x in inputs.items()}
    for name, value in held.items():
        bound.bind_ortvalue_input(name, value)
    bound.bind_output("o", "cpu", 0, "float32", shape, out.data_ptr())
    return Engine(lambda held=held: session.run_with_iobinding(bound), lambda _: out)


def _ort_plain(helper: Any, heads: int) -> list[Any]:
    """Reshape, transpose, matmul, softmax, matmul and back."""
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(helper.make_node("Reshape", [name, "apart"], [f"{name}1"]))
        nodes.append(helper.make_node("Transpose", [f"{name}1"], [f"{name}2"], perm=order))
    nodes.append(helper.make_node("MatMul", ["q2", "k2"], ["scores"]))
    nodes.append(helper.make_node("Softmax", ["scores"], ["weights"], axis=-1))
    nodes.append(helper.make_node("MatMul", ["weights", "v2"], ["mixed"]))
    nodes.append(helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]))
    return [*nodes, helper.make_node("Reshape", ["back", "whole"], ["o"])]


def _ort_fused(helper: Any, heads: int) -> list[Any]:
    """The operator that ONNX Runtime's optimiser makes of a transformer's attention."""
    return [
        helper.make_node(
            "MultiHeadAttention",
            ["q", "k", "v"],
            ["o"],
            domain="com.microsoft",
            num_heads=heads,
            scale=1.0,
        )
    ]
