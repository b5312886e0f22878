"""Time and memory of analysis against depth: find_sites on an encoder of 1024 wide.

Each depth runs in a process of its own, so that its peak is its own. Time is processor time of
``find_sites`` and of reading off every site; memory is what analysis adds at its peak on top of the
program, and the whole peak over the weights. Capture, which is torch.export's, stands beside it.

    python tools/bench_sites.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _bench import claim, emit

LAYERS, QUICK = (6, 12, 24, 48), (6, 12, 24)
WIDTH, QUICK_WIDTH, TOKENS = 1024, 128, 16
CLAIMED = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="narrow models, fewer depths")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(analyse(*asked.one)))
        return
    depths, width = (QUICK, QUICK_WIDTH) if asked.quick else (LAYERS, WIDTH)
    rows = [_in_a_process(layers, width) for layers in depths]
    large = next(row for row in rows if row["layers"] == CLAIMED)
    first, last = rows[0], rows[-1]
    growth = (last["us_per_node"] / first["us_per_node"]) if first["us_per_node"] else 0.0
    millions = round(large["parameters_m"] / 100) * 100
    claims = [
        claim(f"seconds_{CLAIMED}_layers_{millions}m", large["analysis_s"], "s", 1),
        claim("peak_memory_over_weights", large["peak_over_weights"], "x", 1),
        claim("time_per_node_deepest_over_shallowest", growth, "x", 1),
    ]
    emit(f"Analysis of an encoder {width} wide", rows, claims, asked.json, ("edgeprune", "torch"))


def analyse(layers: int, width: int) -> dict[str, Any]:
    """Capture one model and analyse it."""
    import torch
    from families.encoders import First
    from transformers import BertConfig, BertModel

    from edgeprune.program import capture
    from edgeprune.sites import find_sites

    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=4 * width,
    )
    model = First(BertModel(config, add_pooling_layer=False))
    started = time.process_time()
    program = capture(model, (torch.randint(0, 1000, (2, TOKENS)),))
    capture_s = time.process_time() - started
    del model
    gc.collect()
    before = _resident_mb()
    _reset_peak()
    started = time.process_time()
    sites = find_sites(program)
    found = len(sites.sites)
    analysis_s = time.process_time() - started
    peak, nodes = _peak_mb(), len(program.module.graph.nodes)
    weights = program.size_bytes / 1e6
    return {
        "layers": layers,
        "parameters_m": program.parameters / 1e6,
        "nodes": nodes,
        "sites": found,
        "analysis_s": analysis_s,
        "us_per_node": 1e6 * analysis_s / nodes,
        "weights_mb": weights,
        "added_mb": peak - before,
        "peak_over_weights": (weights + peak - before) / weights,
        "capture_s": capture_s,
    }


def _in_a_process(layers: int, width: int) -> dict[str, Any]:
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[1]), str(here.parent)])
    done = subprocess.run(
        [sys.executable, str(here), "--one", str(layers), str(width)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _resident_mb() -> float:
    return _status_kb("VmRSS:") * 1024 / 1e6


def _peak_mb() -> float:
    return _status_kb("VmHWM:") * 1024 / 1e6


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status_kb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
