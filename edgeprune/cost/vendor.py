"""Costs by an accelerator's own compiler: pieces compiled as the model will be, and never run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from edgeprune import files
from edgeprune.console import progress
from edgeprune.cost.blocks import find_blocks
from edgeprune.cost.fit import fit_table
from edgeprune.cost.measure import sample_points
from edgeprune.cost.memory import MB, working_set_bytes
from edgeprune.cost.plans import DENSE, anchor_plans
from edgeprune.cost.samples import BATCH, Point, Sample, Samples, kept_samples, read_samples
from edgeprune.cost.table import CostTable
from edgeprune.errors import InputError
from edgeprune.lower import lower_graph
from edgeprune.lower.lowering import Lowering
from edgeprune.sites import Sites

VENDOR_ESTIMATED = "vendor-estimated"
# Working sets are counted in floats; an NPU's are int8.
INT8_SHARE = 1 / 4


def vendor_costs(
    sites: Sites,
    lowering: Lowering,
    *,
    tokens: Sequence[int] | None = None,
    seed: int = 0,
) -> CostTable:
    """A table of the same form as a measured one, labelled "vendor-estimated".

    Operators that stay on the CPU are in it at an assumed price, so that plans avoid them. Memory
    is the file and the arena together.

    Args:
        sites: of the dense program.
        lowering: to an accelerator whose compiler estimates.
        tokens, seed: as in :func:`measure_costs`.

    Raises:
        InputError: the compiler gives no estimates.
        EdgepruneError: a piece cannot be compiled.
    """
    if lowering.offload is None or not lowering.offload.estimates:
        raise InputError(f"{lowering}: its compiler says nothing of what a file takes")
    blocks, plans = find_blocks(sites), anchor_plans(sites, seed)
    points = list(sample_points(sites, blocks, plans, tokens))
    samples = _samples(sites, lowering, points)
    table = fit_table(sites, blocks, plans, samples, lowering)
    return replace(
        table,
        device=lowering.offload.title,
        versions=lowering.versions,
        provenance=VENDOR_ESTIMATED,
    )


def _samples(sites: Sites, lowering: Lowering, points: Sequence[Point]) -> Samples:
    """Every point's, kept as they come: a build that was stopped goes on."""
    program = sites.program
    dense = (program.module, tuple(each[:1].contiguous() for each in program.example_inputs))
    asked = [Point(DENSE, lambda: dense), *(point for point in points if point.name != DENSE)]
    path = kept_samples(program, lowering, VENDOR_ESTIMATED, lowering.versions)
    samples = read_samples(path)
    missing = [point for point in asked if point.name not in samples]
    with progress("compiling pieces", len(missing), "files") as advance:
        for number, point in enumerate(missing, 1):
            samples[point.name] = _sample(point, lowering, samples)
            if number % BATCH == 0 or number == len(missing):
                body = {name: vars(sample) for name, sample in samples.items()}
                files.write_json(path, "cost-samples", {"samples": body})
            advance(1, point.name)
    return {point.name: samples[point.name] for point in points}


def _sample(point: Point, lowering: Lowering, known: Samples) -> Sample:
    assert point.build is not None
    module, inputs = point.build()
    lowered = lower_graph(module, inputs, lowering)
    assert lowered.estimate is not None
    ms = lowered.estimate.latency_ms
    if point.name.startswith("block "):  # inside a model nobody turns its input into int8
        ms -= lowered.estimate.edges_ms
    return Sample(
        samples_ms=(ms,),
        dense_ms=known[DENSE].samples_ms if DENSE in known else (ms,),
        size_bytes=len(lowered.data),
        working_set_bytes=round(INT8_SHARE * working_set_bytes(module, inputs)),
        peak_memory_mb=(len(lowered.data) + lowered.estimate.arena_bytes) / MB,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
