"""A report as a build of a six-layer text encoder writes it."""

from __future__ import annotations

from typing import Any


def sample(layers: int = 6, measured: bool = True) -> dict[str, Any]:
    """The body of a ``report.json``; without a device where ``measured`` is False."""
    rows: list[dict[str, Any]] = []
    tokens = 128
    for layer in range(layers):
        left = max(16, tokens - 16 * (layer % 3))
        rows.append(
            _row(f"encoder.layer.{layer}.attention", "heads", range(layer % 5, 12), 12)
            | {"tokens_in": tokens, "tokens_out": left}
        )
        tokens = left
        gone = layer == layers - 2
        rows.append(
            _row(f"encoder.layer.{layer}.ffn", "ffn", range(0, 1536, 2), 1536) | {"removed": gone}
        )
    candidates = [
        {
            "predicted_ms": 3.4 + 0.05 * i,
            "measured_ms": 3.45 + 0.04 * i if measured else None,
            "damage": 0.2 + 0.05 * i,
            "score": 0.8 - 0.01 * i,
            "chosen": i == 0,
        }
        for i in range(4)
    ]
    return {
        "title": "minilm-20news",
        "score_name": "accuracy",
        "licence": "Apache-2.0",
        "status": "met" if measured else "not_measured",
        "reason": "",
        "estimated": not measured,
        "profile": {
            "name": "host",
            "title": "this machine",
            "soc": "x86-64",
            "runtime": "executorch",
            "delegate": "xnnpack",
            "precision": "int8",
            "note": None,
            "provenance": {"memory.ram_mb": {"origin": "measured", "source": "the system"}},
        },
        "budget": {"asked": "latency=60%", "latency_ms": 3.6, "peak_memory_mb": None},
        "dense": _model(6.0, 61.0, 55.0, 0.764, measured),
        "pruned": _model(3.5, 50.0, 50.0, 0.752, measured),
        "interval": [-0.018, -0.004],
        "cosine": 0.93,
        "checks": [
            {
                "name": "numerics",
                "passed": True,
                "got": 0.998,
                "wanted": 0.99,
                "note": "64 examples",
            }
        ],
        "layers": rows,
        "front": [{"latency_ms": 1 + 0.1 * i, "damage": 2.0 / (1 + i)} for i in range(50)],
        "certificate": {
            "solver": "dp",
            "gap_pct": 0.0,
            "exact": True,
            "binding": "latency_ms",
            "seconds": 0.12,
            "note": "",
        },
        "rounds": [{"correction": 1.0, "bound_ms": 3.6, "dense_ms": 6.0, "candidates": candidates}],
        "table": {"provenance": "measured", "date": "2026-11-21T09:00:00Z", "error_pct": {}},
        "recovery": {
            "curve": [[i, 1 / (1 + i)] for i in range(100)],
            "seconds": 700.0,
            "steps": 100,
            "loss_before": 0.7,
            "loss_after": 0.3,
        },
        "operators": {
            model: [
                {"op": op, "ms": ms * factor, "calls": 3, "delegate": "xnnpack"} for op, ms in OPS
            ]
            for model, factor in (("dense", 1.0), ("pruned", 0.55))
            if measured
        },
        "delegation": {"delegated": 87, "operators": 99, "why_not": {"layer_norm: no kernel": 12}},
        "state": {"device": "local", "cpu_model": "a CPU", "threads": 1} if measured else None,
        "reproduce": {
            "command": "edgeprune build",
            "sha256": "00",
            "versions": {"torch": "2.13.0"},
        },
        "stages": [{"name": "profile", "seconds": 1.0, "resumed": False}],
    }


OPS = (("linear", 4.2), ("bmm", 0.6), ("softmax", 0.4), ("layer_norm", 0.3), ("add", 0.1))


def _row(name: str, axis: str, kept: range, total: int) -> dict[str, Any]:
    row = {"name": name, "axis": axis, "kept": list(kept), "total": total}
    return row | {"removed": False, "tokens_in": None, "tokens_out": None}


def _model(ms: float, memory: float, size: float, score: float, measured: bool) -> dict[str, Any]:
    if not measured:
        return {"latency_ms": ms, "memory_mb": memory, "score": score}
    times = {"latency_ms": ms, "min_ms": 0.98 * ms, "p90_ms": 1.05 * ms, "first_run_ms": 2 * ms}
    return times | {"load_ms": 30.0, "memory_mb": memory, "size_mb": size, "score": score}
