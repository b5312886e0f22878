"""How fast slim attention runs, against what a program would call instead, on one pinned thread.

All engines compute the same attention in one process, in turns. Sizes follow pruned models: one
head to many, odd counts of heads and tokens among them.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from _attention_peers import Engine, peers
from _bench import DEFAULT_PACKAGES, claim, emit
from torch import Tensor

from edgeprune.kernels import SlimAttention, kernel_named

TOKENS = (16, 17, 31, 32, 33, 64, 65, 127, 128, 197, 256, 511, 512, 1024)
HEADS = (1, 2, 3, 4, 5, 16)
HEAD_DIMS = (32, 64)
# Odd counts, and the even ones beside them.
ODD_TOKENS = ((17, 16), (31, 32), (33, 32), (65, 64), (127, 128), (129, 128), (511, 512))
ODD_HEADS = ((1, 2), (3, 2), (3, 4), (5, 4))
ON_THREADS = ((64, 128, 2), (64, 197, 3), (64, 512, 1), (64, 512, 8))
USABLE = os.sched_getaffinity(0)
ROUNDS, TURN_S, PEAK_ROUNDS = 11, 0.004, 10_000
# Calls from here on are timed in processor time: other programs interrupt them too often.
LONG_S = 0.0005


def timed(found: dict[str, Engine], alone: bool = True) -> dict[str, list[float]]:
    """Milliseconds of each engine, in turns; each turn's value is its fastest call.

    Args:
        alone: each runs on one thread, so that processor time is its time.
    """
    started = time.process_time()
    for engine in found.values():
        engine.run()
    long = time.process_time() - started > LONG_S * len(found)
    clock = time.process_time if alone and long else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, engine in found.items():
            until, best = time.perf_counter() + TURN_S, float("inf")
            while time.perf_counter() < until:
                started = clock()
                engine.run()
                best = min(best, clock() - started)
            samples[name].append(1e3 * best)
    return samples


def processors(count: int) -> list[int]:
    """The last ones that this process may use; the benchmark's own thread is on the first."""
    return sorted(USABLE)[-count:]


def drawn(head_dim: int, tokens: int, heads: int) -> list[Tensor]:
    """q, k, v, the same every time."""
    torch.manual_seed(0)
    return [torch.randn(1, tokens, heads * head_dim) for _ in range(3)]


def empty(slim: SlimAttention) -> Engine:
    """A call from Python that computes nothing."""
    return Engine(lambda: slim.kernel.run(ctypes.byref(slim._call), 0, 0, slim._workspace))


def row(head_dim: int, tokens: int, heads: int) -> dict[str, Any]:
    """One size: microseconds of each engine, and what the kernel is of the peak.

    ``call`` is a call from Python that computes nothing; ``net_gflops`` leaves it out. The peak,
    multiply-adds in registers alone, is measured in the same turns.
    """
    q, k, v = drawn(head_dim, tokens, heads)
    slim = SlimAttention(q, k, v, heads)
    ceiling = Engine(lambda: slim.kernel.peak(PEAK_ROUNDS))
    others = peers(q, k, v, heads)
    for engine in others.values():
        torch.testing.assert_close(slim(), engine.flat(engine.run()), rtol=1e-4, atol=1e-5)
    samples = timed({"slim": Engine(slim), "call": empty(slim), "peak": ceiling, **others})
    least = {name: min(values) for name, values in samples.items()}
    middle = {name: statistics.median(samples[name]) for name in least}
    peer = min(others, key=lambda name: middle[name])
    work = 4e-6 * heads * tokens**2 * head_dim
    net = work / (least["slim"] - least["call"])
    peak = 1e-6 * ceiling.run() / least.pop("peak")
    return {
        "head_dim": head_dim,
        "tokens": tokens,
        "heads": heads,
        **{f"{name} min us": round(1e3 * ms, 2) for name, ms in least.items()},
        **{f"{name} p50 us": round(1e3 * ms, 2) for name, ms in middle.items()},
        "best peer": peer,
        "times best peer": round(middle["slim"] / middle[peer], 3),
        "gflops": round(work / least["slim"], 1),
        "net_gflops": round(net, 1),
        "peak_gflops": round(peak, 1),
        "peak_pct": round(100 * net / peak, 1),
    }


def loss(
    head_dim: int, odd: tuple[int, int], even: tuple[int, int], share: float
) -> dict[str, Any]:
    """How much less an odd size, (tokens, heads), does per second than the even one beside it.

    The call itself is left out: it would hide what the kernel loses, and look like a loss at one
    head.

    Args:
        share: what the odd size computes of the even one.
    """
    slim = {name: SlimAttention(*drawn(head_dim, *name), name[1]) for name in (odd, even)}
    samples = timed(
        {
            **{str(name): Engine(call) for name, call in slim.items()},
            "call": empty(slim[odd]),
        }
    )
    one, other, call = (min(values) for values in samples.values())
    return {
        "head_dim": head_dim,
        "tokens": odd[0],
        "heads": odd[1],
        "beside": f"{even[0]} tokens, {even[1]} heads",
        "loss_pct": round(100 * (1 - share * (other - call) / (one - call)), 1),
    }


def losses(axis: str) -> list[dict[str, Any]]:
    """``loss`` of all odd token counts, or of all odd head counts."""
    if axis == "tokens":
        sizes = [((o, h), (e, h), (o / e) ** 2) for o, e in ODD_TOKENS for h in HEADS]
    else:
        some = (16, 17, 33, 65, 128)
        sizes = [((t, o), (t, e), o / e) for o, e in ODD_HEADS for t in some]
    return [loss(dim, *size) for dim in HEAD_DIMS for size in sizes]


class OnThreads:
    """A call whose steps are shared among threads; calls into the kernels let go of Python."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, threads: int) -> None:
        self.call = SlimAttention(q, k, v, heads)
        self.call._call.threads = threads
        at, kernel = ctypes.byref(self.call._call), self.call.kernel
        steps, size = kernel.steps(at), kernel.workspace_bytes(at)
        edges = [steps * part // threads for part in range(threads + 1)]
        self.shares = [
            (at, first, last, ctypes.create_string_buffer(size))
            for first, last in zip(edges, edges[1:], strict=False)
        ]
        self.pool = ThreadPoolExecutor(threads - 1, initializer=self._pin)
        self.others = processors(threads)[1:]

    def _pin(self) -> None:
        """Each thread on a processor of its own: left alone, they shared one."""
        os.sched_setaffinity(0, {self.others.pop()})

    def __call__(self) -> Tensor:
        others = [self.pool.submit(self.call.kernel.run, *share) for share in self.shares[1:]]
        self.call.kernel.run(*self.shares[0])
        for other in others:
            other.result()
        return self.call.out


def threads_row(head_dim: int, tokens: int, heads: int, threads: int) -> dict[str, Any]:
    """One size on one thread and on more."""
    q, k, v = drawn(head_dim, tokens, heads)
    alone, shared = SlimAttention(q, k, v, heads), OnThreads(q, k, v, heads, threads)
    torch.testing.assert_close(alone(), shared())
    samples = timed({"alone": Engine(alone), "shared": Engine(shared)}, alone=False)
    least = {name: min(values) for name, values in samples.items()}
    return {
        "head_dim": head_dim,
        "tokens": tokens,
        "heads": heads,
        "1 thread min us": round(1e3 * least["alone"], 2),
        f"{threads} threads min us": round(1e3 * least["shared"], 2),
        "times faster": round(least["alone"] / least["shared"], 2),
    }


def measure(quick: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and claims of one thread."""
    sizes = [(d, t, h) for d in HEAD_DIMS for t in TOKENS for h in HEADS]
    rows = []
    for size in sizes[::9] if quick else sizes:
        rows.append(row(*size))
        print(f"head_dim, tokens, heads {size}: {rows[-1]['peak_pct']}%", file=sys.stderr)
    long = [r["peak_pct"] for r in rows if r["tokens"] >= 128]
    worst = max(r["times best peer"] for r in rows)
    tokens, heads = losses("tokens"), losses("heads")
    claims = [
        claim("worst_ratio_vs_best_peer", worst, "", len(rows)),
        claim("peak_share_pct_at_128", min(long), "%", len(long)),
        claim("worst_cliff_pct", max(r["loss_pct"] for r in tokens), "%", len(tokens)),
        claim("worst_cliff_of_heads_pct", max(r["loss_pct"] for r in heads), "%", len(heads)),
    ]
    return [*rows, *tokens, *heads], claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few sizes")
    parser.add_argument("--threads", type=int, default=1, help="only how our steps share threads")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, processors(options.threads)[:1])
    torch.set_num_threads(1)
    # Compilers print; the result has standard output for itself.
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kernel = kernel_named(None).name.decode()
    title = f"slim attention, {kernel}, {options.threads} thread(s)"
    if options.threads > 1:
        rows = [threads_row(*size, options.threads) for size in ON_THREADS]
        fastest = max(r["times faster"] for r in rows)
        claims = [claim(f"most_times_faster_on_{options.threads}_threads", fastest, "", len(rows))]
    else:
        rows, claims = measure(options.quick)
    sys.stdout = result
    emit(title, rows, claims, options.json, (*DEFAULT_PACKAGES, "onnxruntime"))


if __name__ == "__main__":
    main()
