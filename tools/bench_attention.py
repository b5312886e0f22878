"""How fast slim attention runs, against what a program would call instead, on one pinned thread.

All engines compute the same attention in one process, in turns. Sizes follow pruned models: one
head to many, odd counts of heads and tokens among them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _bench import claim, emit
from torch import Tensor
from torch.nn import functional

from edgeprune.kernels import SlimAttention, kernel_named

TOKENS = (16, 17, 31, 32, 64, 65, 127, 128, 197, 256, 511, 512, 1024)
HEADS = (1, 2, 3, 5, 8, 12, 16)
HEAD_DIMS = (32, 64)
ROUNDS, TURN_S, PEAK_ROUNDS = 15, 0.004, 200_000
Engine = Callable[[], object]


def engines(q: Tensor, k: Tensor, v: Tensor, heads: int) -> dict[str, Engine]:
    """Every way to compute it here, each a call without arguments."""
    tokens, head_dim = q.shape[1], q.shape[2] // heads
    split = [each.view(1, tokens, heads, head_dim) for each in (q, k, v)]
    apart = [each.transpose(1, 2) for each in split]
    found: dict[str, Engine] = {
        "slim": SlimAttention(q, k, v, heads),
        "torch SDPA": lambda: functional.scaled_dot_product_attention(*apart),
        "torch matmul": lambda: _plain(*apart),
    }
    if custom := _custom_sdpa():
        found["custom_sdpa"] = lambda: custom(*split, 0, None, 0.0, False, None)
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


def timed(found: dict[str, Engine]) -> dict[str, list[float]]:
    """Milliseconds of each engine, in turns; each turn's value is its fastest call."""
    for run in found.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, run in found.items():
            until, best = time.perf_counter() + TURN_S, float("inf")
            while time.perf_counter() < until:
                started = time.perf_counter()
                run()
                best = min(best, time.perf_counter() - started)
            samples[name].append(1e3 * best)
    return samples


def peak_gflops() -> float:
    """What multiply-adds in registers alone reach with the same instructions, at best."""
    kernel, best = kernel_named(None), 0.0
    for _ in range(ROUNDS):
        started = time.perf_counter()
        made = kernel.peak(PEAK_ROUNDS)
        best = max(best, made / (time.perf_counter() - started) / 1e9)
    return best


def row(head_dim: int, tokens: int, heads: int, peak: float) -> dict[str, Any]:
    """One size: milliseconds of each engine, and what ours is of the peak."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, heads * head_dim) for _ in range(3))
    found = engines(q, k, v, heads)
    wanted = found["torch SDPA"]().transpose(1, 2).flatten(2)  # type: ignore[attr-defined]
    torch.testing.assert_close(found["slim"](), wanted, rtol=1e-4, atol=1e-5)
    samples = timed(found)
    least = {name: min(values) for name, values in samples.items()}
    middle = {name: statistics.median(values) for name, values in samples.items()}
    peer = min((name for name in least if name != "slim"), key=lambda name: middle[name])
    gflops = 4 * heads * tokens**2 * head_dim / least["slim"] / 1e6
    return {
        "head_dim": head_dim,
        "tokens": tokens,
        "heads": heads,
        **{f"{name} min us": round(1e3 * ms, 2) for name, ms in least.items()},
        **{f"{name} p50 us": round(1e3 * ms, 2) for name, ms in middle.items()},
        "best peer": peer,
        "times best peer": round(middle["slim"] / middle[peer], 3),
        "gflops": round(gflops, 1),
        "peak_pct": round(100 * gflops / peak, 1),
    }


def cliff_pct(rows: list[dict[str, Any]]) -> float:
    """How much less an odd token count does per second than the even one beside it, at worst."""
    speed = {(r["head_dim"], r["tokens"], r["heads"]): r["gflops"] for r in rows}
    pairs = [
        (value, speed[dim, tokens + step, heads])
        for (dim, tokens, heads), value in speed.items()
        for step in (-1, 1)
        if tokens % 2 and (dim, tokens + step, heads) in speed
    ]
    return max((100 * (1 - odd / even) for odd, even in pairs), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few sizes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpu})
    torch.set_num_threads(1)
    peak = peak_gflops()
    sizes = [(d, t, h) for d in HEAD_DIMS for t in TOKENS for h in HEADS]
    rows = [row(*size, peak) for size in (sizes[::9] if options.quick else sizes)]
    long = [r["peak_pct"] for r in rows if r["tokens"] >= 128]
    kernel = kernel_named(None).name.decode()
    worst = max(r["times best peer"] for r in rows)
    emit(
        f"slim attention, {kernel}, 1 thread, peak {peak:.0f} GFLOP/s",
        rows,
        [
            claim("worst_ratio_vs_best_peer", worst, "", len(rows)),
            claim("peak_share_pct_at_128", min(long), "%", len(long)),
            claim("worst_cliff_pct", cliff_pct(rows), "%", len(rows)),
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
