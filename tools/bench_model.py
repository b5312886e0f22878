"""How fast whole models run with our kernels in both runtimes: dense, and pruned.

Pruned by three fixed plans of a half; with --plan, by the plans of these files (`edgeprune plan
minilm-20news` writes one) alone.
All files of one size run in one process on one pinned thread, in turns; with --threads, on as many,
the dense model of 128 tokens alone. Baselines are what someone would ship otherwise: the runtime's
stock conversion, and our own lowering without our kernels.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _bench import claim, emit
from bench_lowering import Inputs, MeanPooledBert
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeprune import console
from edgeprune.devices import Measurement, Workload, connect
from edgeprune.host import isa_features
from edgeprune.lower import RUNTIMES, Lowering, lower_graph
from edgeprune.lower.quiet import quiet
from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.sites import Sites, find_sites
from edgeprune.steps import capture_stage
from edgeprune.surgery import apply
from edgeprune.task import load_task

PACKAGES = ("edgeprune", "torch", "executorch", "ai-edge-litert", "litert-torch")
OURS, WITHOUT, STOCK = "edgeprune", "without our kernels", "stock"


def text(tokens: int, rows: int = 1) -> Inputs:
    """Texts of which four fifths are real tokens, the same every time."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (rows, tokens), generator=generator)
    mask = (torch.arange(tokens) < tokens * 4 // 5).to(torch.int64).expand(rows, -1).contiguous()
    return ids * mask, mask


def lowered(module: nn.Module, inputs: Inputs, lowering: Lowering) -> bytes:
    """A file by our own lowering."""
    return lower_graph(module, inputs, lowering).data


def stock_executorch(module: nn.Module, inputs: Inputs, precision: str) -> bytes:
    """ExecuTorch's documented road."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from edgeprune.lower.quantise import quantise_dynamic

    exported = torch.export.export(module, inputs)
    if precision == "int8":
        exported = torch.export.export(quantise_dynamic(exported.module(), inputs), inputs)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def stock_litert(module: nn.Module, inputs: Inputs, precision: str) -> bytes:
    """LiteRT's documented road."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    data = litert_torch.convert(module, inputs).model_content()
    if precision == "fp32":
        return bytes(data)
    model = quantizer.Quantizer(data)
    model.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    return bytes(model.quantize().quantized_model)


STOCKS = {"executorch": stock_executorch, "litert": stock_litert}


def files(
    module: nn.Module, inputs: Inputs, folder: Path, precision: str, stock: bool
) -> Iterator[tuple[tuple[str, str], Workload]]:
    """(runtime, how) -> the file, of every way to make it."""
    isa = isa_features()
    for runtime, kind in RUNTIMES.items():
        makers = {
            OURS: partial(lowered, lowering=Lowering(precision, runtime, isa=isa)),  # type: ignore[arg-type]
            WITHOUT: partial(lowered, lowering=Lowering(precision, runtime, "off")),  # type: ignore[arg-type]
        }
        if stock:
            makers[STOCK] = partial(STOCKS[runtime], precision=precision)
        for how, make in makers.items():
            path = folder / f"{runtime}-{how.replace(' ', '-')}-{precision}{kind.suffix}"
            with quiet():
                path.write_bytes(make(module, inputs))
            yield (runtime, how), Workload(path.name, path, inputs)


def fixed_plans(sites: Sites) -> dict[str, Plan]:
    """Half of the heads, of the neurons, and of the tokens after the second layer."""
    dense = Plan(sites.program.fingerprint)
    width = [site for site in sites.cuttable if site.kind == "width"]
    halves = {
        "heads 50%": [site for site in width if site.axis == "heads"],
        "ffn 50%": [site for site in width if site.axis == "ffn"],
    }
    plans = {
        name: replace(dense, kept={s.name: tuple(range(s.units // 2)) for s in chosen})
        for name, chosen in halves.items()
    }
    second = sites.streams[1]
    return plans | {"tokens 50%": replace(dense, tokens={second.name: second.tokens.size // 2})}


def flops(module: nn.Module, inputs: Inputs) -> int:
    """Of one inference, as PyTorch counts them."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops())


def dense_rows(tokens: int, precision: str, rounds: int, threads: int = 1) -> list[dict[str, Any]]:
    """The dense model, every way."""
    with quiet():
        module = MeanPooledBert().eval()
    inputs = text(tokens)
    with (
        tempfile.TemporaryDirectory() as folder,
        connect("local", threads) as device,
        torch.no_grad(),
    ):
        made = dict(files(module, inputs, Path(folder), precision, stock=True))
        found = device.measure_in_turns(list(made.values()), rounds=rounds)
        wanted = module(*inputs)
        rows = []
        for (runtime, how), load in made.items():
            with device.predictor(load.path) as predict:
                got = predict(inputs)
            assert isinstance(got, Tensor)
            cosine = float(torch.cosine_similarity(got, wanted).min())
            rows.append(
                row("dense", tokens, precision, runtime, how, found[load.name])
                | {"cosine": round(cosine, 5), "threads": threads}
            )
    return rows


def halves() -> tuple[Program, dict[str, Plan]]:
    """The model of the dense rows, and the fixed plans."""
    with quiet():
        program = capture(MeanPooledBert().eval(), text(128, rows=2))
    return program, fixed_plans(find_sites(program))


def solved(plans: list[Path]) -> tuple[Program, dict[str, Plan]]:
    """The example task's model, and plans that were solved for it."""
    program, _ = capture_stage(load_task("minilm-20news"))
    return program, {f"{path.parent.name}/{path.name}": Plan.read(path) for path in plans}


def pruned_rows(
    program: Program, plans: dict[str, Plan], precision: str, rounds: int
) -> list[dict[str, Any]]:
    """Cut models beside the dense one, with our kernels."""
    sites, inputs = find_sites(program), text(128)
    programs = {"dense": program}
    programs |= {name: apply(program, plan, sites) for name, plan in plans.items()}
    work = {name: flops(each.module, inputs) for name, each in programs.items()}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, connect("local") as device, torch.no_grad():
        loads: dict[tuple[str, str], Workload] = {}
        for number, (name, each) in enumerate(programs.items()):
            own = Path(folder, str(number))
            own.mkdir()
            for (runtime, how), load in files(each.module, inputs, own, precision, stock=False):
                if how == OURS:
                    loads[runtime, name] = replace(load, name=f"{runtime} {name}")
        found = device.measure_in_turns(list(loads.values()), rounds=rounds)
        for (runtime, name), load in loads.items():
            dense = found[loads[runtime, "dense"].name].min_ms
            measured = found[load.name]
            reduction = work["dense"] / work[name]
            entry = row(name, 128, precision, runtime, OURS, measured)
            entry |= {"flop_reduction": reduction, "speedup": dense / measured.min_ms}
            rows.append(entry | {"speedup_over_flops": entry["speedup"] / reduction})
    return rows


def row(
    model: str, tokens: int, precision: str, runtime: str, how: str, found: Measurement
) -> dict[str, Any]:
    """What was measured of one file."""
    return {
        "model": model,
        "tokens": tokens,
        "precision": precision,
        "runtime": runtime,
        "file": how,
        "min_ms": found.min_ms,
        "median_ms": found.p50_ms,
    }


def shared_claims(rows: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Of files that ran on several threads: medians of ours over stock ones."""
    ms = {(r["precision"], r["runtime"], r["file"]): r["median_ms"] for r in rows}
    threads = rows[0]["threads"]
    return [
        claim(
            f"{runtime}_{precision}_vs_stock_{threads}_threads",
            ms[precision, runtime, OURS] / ms[precision, runtime, STOCK],
            "x",
            rounds,
        )
        for precision, runtime in (
            ("int8", "executorch"),
            ("fp32", "executorch"),
            ("int8", "litert"),
        )
    ]


def claims_of(rows: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Ratios of medians, of files that ran in turns."""
    ms = {
        (r["tokens"], r["precision"], r["runtime"], r["file"]): r["median_ms"]
        for r in rows
        if r["model"] == "dense" and "cosine" in r
    }
    pairs = {
        "executorch_int8_vs_rewrite": ("int8", "executorch", OURS, "executorch", WITHOUT),
        "executorch_int8_vs_litert": ("int8", "executorch", OURS, "litert", STOCK),
        "litert_int8_vs_stock": ("int8", "litert", OURS, "litert", STOCK),
        "executorch_fp32_vs_litert": ("fp32", "executorch", OURS, "litert", STOCK),
    }
    claims = []
    for tokens in sorted({each[0] for each in ms}):
        ending = "" if tokens == 128 else f"_{tokens}"
        for name, (precision, runtime, how, other, than) in pairs.items():
            if (tokens, precision, runtime, how) in ms:
                ratio = ms[tokens, precision, runtime, how] / ms[tokens, precision, other, than]
                claims.append(claim(name + ending, ratio, "x", rounds))
    for precision, ending in (("int8", ""), ("fp32", "_fp32")):
        shares = [
            r["speedup_over_flops"]
            for r in rows
            if r["precision"] == precision and "%" in r["model"]  # a fixed plan
        ]
        if shares:
            claims.append(claim(f"speedup_over_flops_50{ending}", min(shares), "x", len(shares)))
    return claims


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="128 tokens only, 15 rounds")
    parser.add_argument("--plan", type=Path, nargs="+", default=[], help="solved plans, instead")
    parser.add_argument("--threads", type=int, default=1, help="the dense model on so many")
    arguments = parser.parse_args()
    console.configure(as_json=arguments.json)
    rounds = 15 if arguments.quick else 60
    # Some converters print; the result has standard output for itself.
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    rows, threads = [], arguments.threads
    lengths = (128,) if arguments.quick or threads > 1 else (128, 256, 512)
    for tokens in () if arguments.plan else lengths:
        for precision in ("int8", "fp32"):
            rows += dense_rows(tokens, precision, rounds, threads)
    if threads == 1:
        program, plans = solved(arguments.plan) if arguments.plan else halves()
        for precision in ("int8", "fp32"):
            rows += pruned_rows(program, plans, precision, rounds)
    claims = claims_of(rows, rounds) if threads == 1 else shared_claims(rows, rounds)
    sys.stdout = result
    title = f"MiniLM-L6, batch 1, {threads} pinned thread(s), {rounds} rounds in turns"
    emit(title, rows, claims, arguments.json, packages=PACKAGES)


if __name__ == "__main__":
    main()
