"""How fast the dense MiniLM runs on LiteRT with our delegate, against stock LiteRT.

All files run in one process on one pinned thread, in turns, on the same 128 tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import claim, emit
from bench_lowering import TOKENS, MeanPooledBert, interleaved, text
from torch import Tensor, nn

from edgeprune.kernels.build import build_library
from edgeprune.lower.composites import add_layer_norm, linear_int8, slim_attention
from edgeprune.lower.quiet import quiet

PACKAGES = ("edgeprune", "torch", "ai-edge-litert", "litert-torch", "ai-edge-quantizer")
Change = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Variant:
    """The model as it is converted: ``changes`` put composites in."""

    name: str
    changes: tuple[Change, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "int8")


def attention_composites(model: nn.Module) -> None:
    """Attention of a Hugging Face encoder becomes slim attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        q, k, v = (x.transpose(1, 2).flatten(2) for x in (query, key, value))
        heads = query.shape[1]
        out = slim_attention(q, k, v, mask, heads, key.shape[1], scaling, False)
        return out.unflatten(2, (heads, -1)), None

    ALL_ATTENTION_FUNCTIONS.register("edgeprune", forward)
    model.encoder.config._attn_implementation = "edgeprune"


class Norm(nn.Module):
    """A layer norm as a composite, perhaps of a sum."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        norm = self.norm
        return add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)[0]


class SumAndNorm(nn.Module):
    """BERT's end of a block: ``norm(dense(x) + residual)``."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.dense, self.norm = block.dense, Norm(block.LayerNorm)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.dense(x), residual)


def norm_composites(model: nn.Module) -> None:
    """Layer norms become composites, with the sums before them."""
    embeddings = model.encoder.embeddings
    embeddings.LayerNorm = Norm(embeddings.LayerNorm)
    for layer in model.encoder.encoder.layer:
        layer.attention.output = SumAndNorm(layer.attention.output)
        layer.output = SumAndNorm(layer.output)


class Int8Linear(nn.Module):
    """A linear layer as a composite on 8 bits."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        scales = linear.weight.detach().abs().amax(1) / 127
        rounded = (linear.weight.detach() / scales[:, None]).round().to(torch.int8)
        self.activation = activation
        self.register_buffer("weight", rounded)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return linear_int8(x, self.weight, self.scales, self.bias, self.activation)


def linear_composites(model: nn.Module) -> None:
    """Linear layers become composites on 8 bits, with the GELU after them."""
    for layer in model.encoder.encoder.layer:
        layer.intermediate = Int8Linear(layer.intermediate.dense, "gelu")
        for block in layer.modules():
            for name, inner in list(block.named_children()):
                if isinstance(inner, nn.Linear):
                    setattr(block, name, Int8Linear(inner))


VARIANTS = (
    Variant("stock"),
    Variant("attention", (attention_composites,)),
    Variant("attention, norm", (attention_composites, norm_composites)),
    Variant(
        "attention, norm, linear",
        (attention_composites, norm_composites, linear_composites),
        ("int8",),
    ),
)


def converted(variant: Variant, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write the variant in float32 to ``path``, and in int8 beside it."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    model = MeanPooledBert().eval()
    for change in variant.changes:
        change(model)
    litert_torch.convert(model, inputs).export(str(path))
    quantised = quantizer.Quantizer(str(path))
    quantised.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    quantised.quantize().export_model(str(path.with_suffix(".int8.tflite")))


def loaded(path: Path, inputs: tuple[Tensor, ...], library: Path | None) -> Callable[[], Any]:
    """The file, ready to run on its inputs."""
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    delegates = [load_delegate(str(library))] if library else None
    interpreter = Interpreter(str(path), num_threads=1, experimental_delegates=delegates)
    interpreter.allocate_tensors()
    slots = sorted(interpreter.get_input_details(), key=lambda slot: slot["name"])
    for slot, value in zip(slots, inputs, strict=True):
        interpreter.set_tensor(slot["index"], value.numpy().astype(slot["dtype"]))
    output = interpreter.get_output_details()[0]["index"]

    def run() -> np.ndarray:
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(output))

    return run


def measured(
    inputs: tuple[Tensor, ...], folder: Path, precision: str, rounds: int, library: Path
) -> list[dict[str, Any]]:
    """A row for each variant, with our delegate where there is something for it."""
    ending = ".int8.tflite" if precision == "int8" else ".tflite"
    variants = [variant for variant in VARIANTS if precision in variant.precisions]
    runs = [
        loaded(
            folder / f"{VARIANTS.index(each)}{ending}", inputs, library if each.changes else None
        )
        for each in variants
    ]
    wanted = MeanPooledBert().eval()(*inputs).numpy()
    samples = interleaved(runs, rounds)
    return [
        {
            "file": variant.name,
            "precision": precision,
            "min_ms": min(kept),
            "median_ms": statistics.median(kept),
            "min_ratio": min(kept) / min(samples[0]),
            "median_ratio": statistics.median(kept) / statistics.median(samples[0]),
            "max_abs_diff": float(np.abs(run() - wanted).max()),
        }
        for variant, run, kept in zip(variants, runs, samples, strict=True)
    ]


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="30 rounds instead of 200")
    arguments = parser.parse_args()
    rounds = 30 if arguments.quick else 200
    processors = os.sched_getaffinity(0)
    library = build_library("litert")
    os.sched_setaffinity(0, {max(processors)})
    torch.set_num_threads(1)
    # The converter prints; the result has standard output for itself.
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    inputs = text(length=100)
    with torch.no_grad(), tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        for number, variant in enumerate(VARIANTS):
            converted(variant, inputs, folder / f"{number}.tflite")
        rows = [
            row
            for precision in ("fp32", "int8")
            for row in measured(inputs, folder, precision, rounds, library)
        ]
    last = {row["precision"]: row for row in rows}
    claims = [
        claim(f"time_ratio_{precision}", row["median_ratio"], "x", rounds)
        for precision, row in last.items()
    ]
    os.sched_setaffinity(0, processors)
    sys.stdout = result
    title = f"Dense MiniLM-L6 on LiteRT, {TOKENS} tokens, one pinned thread, {rounds} rounds"
    emit(title, rows, claims, arguments.json, packages=PACKAGES)


if __name__ == "__main__":
    main()
