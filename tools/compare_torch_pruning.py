"""edgeprune beside Torch-Pruning: what each finds in four models, and whether the cut is right.

Both cut half of what they find in the same models, small and with random weights: a ResNet-50
(its depths and bottlenecks), ViT, BERT, and Llama with grouped queries. Each is judged by its own
masked twin: the uncut model with what was removed silenced where it is read. Torch-Pruning runs as
its documentation says, and once more with the residual width left alone, which a normalisation
over that width makes inexact by nature. Lines are those of the functions below that a user writes.

    pip install torch-pruning==1.6.0
    python tools/compare_torch_pruning.py [--quick] [--json] [--show]
"""

from __future__ import annotations

import argparse
import copy
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from _bench import claim, emit
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from edgeprune.audit.equality import compare, maskable
from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply

MOST_SECONDS = 120
NEEDS = "compare_torch_pruning: install it first: pip install torch-pruning==1.6.0"
WIDE, NARROW = 128, 32
LEFT = 0.5
# `for group in pruner.step(interactive=True): group.prune()`, and what skips a group: the test for
# norms and embeddings among its members, with its `continue`.
PRUNE_LINES, SKIP_LINES = 2, 4


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and what Torch-Pruning's user must name in it."""

    name: str
    build: Callable[[int], nn.Module]
    inputs: tuple[Tensor, ...]
    prune: Callable[[Any, nn.Module, tuple[Tensor, ...]], Any]


class Logits(nn.Module):
    """A model with one positional input and its logits, for both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found = self.model(x).logits
        assert isinstance(found, Tensor)
        return found


def resnet(width: int) -> nn.Module:
    sizes = [width // 2 * 2**i for i in range(4)]
    config = ResNetConfig(embedding_size=width // 4, hidden_sizes=sizes, depths=[3, 4, 6, 3])
    return Logits(ResNetForImageClassification(config))


def vit(width: int) -> nn.Module:
    config = ViTConfig(**_transformer(width), image_size=32, patch_size=8)
    return Logits(ViTForImageClassification(config))


def bert(width: int) -> nn.Module:
    config = BertConfig(**_transformer(width), vocab_size=100, max_position_embeddings=64)
    return Logits(BertForSequenceClassification(config))


def llama(width: int) -> nn.Module:
    config = LlamaConfig(
        **_transformer(width), num_key_value_heads=4, vocab_size=100, use_cache=False
    )
    return Logits(LlamaForCausalLM(config))


def _transformer(width: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return sizes | {"num_hidden_layers": 2, "num_attention_heads": 8, "initializer_range": 0.1}


# What a user writes: --show prints these, and their lines are counted.


def edgeprune_code(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Sites, Plan, Any]:
    program = capture(model, inputs)
    sites = find_sites(program)
    width = [site for site in sites.cuttable if site.kind == "width"]
    kept = {site.name: tuple(range(max(1, int(site.units * LEFT)))) for site in width}
    plan = Plan(program.fingerprint, kept)
    return sites, plan, apply(program, plan, sites)


def cnn_code(tp: Any, model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    classifier = model.model.classifier[-1]  # type: ignore[union-attr, index]
    importance = tp.importance.MagnitudeImportance(p=2)
    return tp.pruner.BasePruner(
        model, inputs, importance, pruning_ratio=LEFT, ignored_layers=[classifier]
    )


def encoder_code(tp: Any, model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    heads = {
        linear: model.model.config.num_attention_heads  # type: ignore[union-attr]
        for name, linear in model.named_modules()
        if name.endswith(("query", "key", "value", "q_proj", "k_proj", "v_proj"))
    }
    return tp.pruner.BasePruner(
        model,
        inputs,
        tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=LEFT,
        head_pruning_ratio=LEFT,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=[model.model.classifier],  # type: ignore[union-attr]
    )


def decoder_code(tp: Any, model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    heads = {}
    for layer in model.model.model.layers:  # type: ignore[union-attr]
        heads[layer.self_attn.q_proj] = model.model.config.num_attention_heads  # type: ignore[union-attr]
        heads[layer.self_attn.k_proj] = model.model.config.num_key_value_heads  # type: ignore[union-attr]
        heads[layer.self_attn.v_proj] = model.model.config.num_key_value_heads  # type: ignore[union-attr]
    return tp.pruner.BasePruner(
        model,
        inputs,
        tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=LEFT,
        head_pruning_ratio=LEFT,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=[model.model.lm_head],  # type: ignore[union-attr]
    )


def _images(size: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def _words() -> tuple[Tensor, ...]:
    return (torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(0)),)


CASES = (
    Case("ResNet-50", resnet, _images(64), cnn_code),
    Case("ViT", vit, _images(32), encoder_code),
    Case("BERT", bert, _words(), encoder_code),
    Case("Llama, grouped queries", llama, _words(), decoder_code),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="narrow models")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--show", action="store_true", help="print the code that is counted")
    asked = parser.parse_args()
    try:
        import torch_pruning as tp
    except ModuleNotFoundError:
        sys.exit(NEEDS)
    if asked.show:
        for code in (edgeprune_code, cnn_code, encoder_code, decoder_code):
            print(inspect.getsource(code))
    rows = [row for case in CASES for row in _rows(tp, case, NARROW if asked.quick else WIDE)]
    packages = ("edgeprune", "torch", "torch-pruning", "transformers")
    emit("What each finds and whether it is right", rows, _claims(rows), asked.json, packages)


def _rows(tp: Any, case: Case, width: int) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    model = case.build(width).eval()
    yield {"model": case.name, "tool": "edgeprune"} | _ours(copy.deepcopy(model), case)
    for stream, tool in ((True, "Torch-Pruning"), (False, "Torch-Pruning, width kept")):
        found = _theirs(tp, copy.deepcopy(model), case, stream)
        yield {"model": case.name, "tool": tool} | found


def _ours(model: nn.Module, case: Case) -> dict[str, Any]:
    sites, plan, slim = edgeprune_code(model, case.inputs)
    behind = {path for name in plan.kept for path, _ in sites.get(name).weights}
    weights = {path.removesuffix(".weight") for path in behind if path.endswith(".weight")}
    every = dict(_matrices(model))
    reached = sum(every[name] for name in every if name in weights)
    cuts, _ = maskable(sites, plan)
    equality = compare(sites, cuts, case.inputs)
    return {
        "width": len(plan.kept),
        "depth": sum(site.kind == "depth" for site in sites.cuttable),
        "length": sum(site.kind == "length" for site in sites.cuttable),
        "reached_pct": 100 * reached / sum(every.values()),
        "left_pct": 100 * slim.parameters / sites.program.parameters,
        "runs": "yes",
        "difference": equality[-1].difference,
        "lines": _lines(edgeprune_code),
        "note": "",
    }


def _theirs(tp: Any, model: nn.Module, case: Case, stream: bool) -> dict[str, Any]:
    """Prune half; with ``stream`` False the residual width is left as it is."""
    twin, before = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    row: dict[str, Any] = {"width": 0, "depth": 0, "length": 0, "lines": _lines(case.prune)}
    row["lines"] += PRUNE_LINES if stream else PRUNE_LINES + SKIP_LINES
    every = dict(_matrices(model))
    names = {module: name for name, module in model.named_modules()}
    reached: set[str] = set()
    try:
        _limit(MOST_SECONDS)
        pruner = case.prune(tp, model, case.inputs)
        for group in pruner.step(interactive=True):
            if not stream and _is_stream(group):
                continue
            row["width"] += 1
            reached |= {names.get(dep.target.module, "") for dep, _ in group}
            _silence(group, names, dict(twin.named_modules()))
            group.prune()
    except Exception as error:
        return row | {"runs": "no", "note": f"pruning: {_one_line(error)}"}
    finally:
        _limit(0)
    row["reached_pct"] = 100 * sum(every.get(n, 0) for n in reached) / sum(every.values())
    row["left_pct"] = 100 * sum(p.numel() for p in model.parameters()) / before
    try:
        with torch.no_grad():
            got, wanted = model(*case.inputs), twin(*case.inputs)
    except Exception as error:
        return row | {"runs": "no", "note": f"forward: {_one_line(error)}"}
    gap = float((got - wanted).abs().max() / wanted.abs().max())
    note = "a normalisation runs over what was cut" if stream and gap > 1e-3 else ""
    return row | {"runs": "yes", "difference": gap, "note": note}


def _limit(seconds: int) -> None:
    """Stop what follows after so much processor time; 0 lifts the limit."""
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _stop(number: int, frame: object) -> None:
    raise TimeoutError(f"not done after {MOST_SECONDS} s of processor time")


def _is_stream(group: Any) -> bool:
    """Whether a group is the residual width: one that norms over features or embeddings share."""
    kinds = {type(dep.target.module).__name__ for dep, _ in group}
    return any("LayerNorm" in kind or "Embedding" in kind or "RMSNorm" in kind for kind in kinds)


def _silence(group: Any, names: dict[nn.Module, str], twin: dict[str, nn.Module]) -> None:
    """Zero the columns of every matrix that reads what the group removes."""
    for dep, indices in group:
        reads = "in_channels" in dep.handler.__name__
        module = twin.get(names.get(dep.target.module, ""))
        if reads and isinstance(module, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                if isinstance(module, nn.Conv2d) and module.groups > 1:
                    module.weight[indices] = 0
                else:
                    module.weight[:, indices] = 0


def _matrices(model: nn.Module) -> Iterator[tuple[str, int]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name, module.weight.numel()


def _lines(code: Callable[..., object]) -> int:
    """Of the body, as formatted here."""
    body = inspect.getsource(code).split(":\n", 1)[1].splitlines()
    return sum(bool(line.strip()) for line in body)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:90]


def _claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ours = [row for row in rows if row["tool"] == "edgeprune"]
    worst = max(row["difference"] for row in ours)
    least = min(row["reached_pct"] for row in ours)
    return [
        claim("edgeprune_worst_difference", worst, "of the largest output", len(ours)),
        claim("edgeprune_least_reached", least, "% of linear and conv weights", len(ours)),
        claim("edgeprune_lines", max(row["lines"] for row in ours), "lines", len(ours)),
    ]


if __name__ == "__main__":
    main()
