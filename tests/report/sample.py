"""A report as a build of a text encoder writes it: 12 heads, 1,536 neurons, 128 tokens."""

from __future__ import annotations

import math
from dataclasses import replace

from edgeprune.devices import DeviceState, Moment
from edgeprune.report.schema import (
    ESTIMATED,
    VENDOR_ESTIMATED,
    Bounds,
    Candidate,
    Comparison,
    Costs,
    Delegation,
    Front,
    FrontPoint,
    Layer,
    Model,
    Number,
    Operator,
    Operators,
    Outcome,
    Recovery,
    Report,
    Reproduce,
    Round,
    Source,
    Stage,
    Target,
    WhyNot,
    measured_on,
)
from edgeprune.solve import Certificate
from edgeprune.validate.check import Check
from edgeprune.validate.numerics import Numerics

HERE = measured_on("this machine")
HEADS, NEURONS, TOKENS = 12, 1536, 128
OPERATORS = (
    ("linear", 37, 6.54, True),
    ("bmm", 12, 1.46, True),
    ("expand_copy", 24, 0.83, False),
    ("layer_norm", 13, 0.58, False),
    ("softmax", 6, 0.46, True),
    ("gelu", 6, 0.33, True),
    ("view_copy", 30, 0.26, True),
)


def sample(layers: int = 6) -> Report:
    """A build that met its budget in the second round."""
    return Report(
        title="minilm-20news",
        score_name="accuracy",
        licence="Apache-2.0",
        target=_target(),
        bounds=Bounds("latency=60%", 6.85, 50, None, None, None, estimated=False),
        outcome=Outcome("met", "", _checks()),
        dense=_model((11.2, 11.42, 11.8), 38.1, 61.4, 74.2, 33.9, 0.7642),
        pruned=_model((6.61, 6.71, 6.93), 22.0, 48.7, 58.3, 27.5, 0.7556),
        comparison=Comparison(-0.86, (-1.52, -0.20), 7532, 0.957),
        layers=sample_layers(layers),
        front=_front(),
        rounds=_rounds(),
        costs=Costs(
            "measured", "2026-11-21T09:12:00+00:00", 7, {"anchors_mean": 1.8, "anchors_worst": 4.1}
        ),
        recovery=Recovery(_curve(), 702.0, 1200, 0.412, 0.173, True, 0.7561),
        operators=Operators(_operators(1.0), _operators(0.57)),
        delegation=Delegation(
            112,
            149,
            (
                WhyNot("aten.layer_norm.default", "XNNPACK has no kernel for it", 13),
                WhyNot("aten.embedding.default", "an integer input", 1),
            ),
        ),
        numerics=Numerics("int8", 64, 0.9972, 0.99, 3, (2, 5, 9, 31, 63), 0.041, 0.15),
        state=DeviceState(
            device="this machine",
            system="Linux 6.12 x86_64",
            cpu_model="AMD EPYC 9654",
            governor="performance",
            moments=(Moment(0.0, 3700.0, None), Moment(1.9, 3694.0, None)),
            load_average=0.4,
            affinity=(1,),
            threads=1,
            versions={"executorch": "1.5.1"},
            facts={"virtual machine": "yes"},
        ),
        flags=("noisy: p10 to p90 span 31% of the median, wanted 20% at most",),
        reproduce=Reproduce(
            "edgeprune build --profile host --task minilm-20news --budget latency=60%",
            "9f2c41d0a7b3",
            "model.pte",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            {"edgeprune": "0.1.0", "executorch": "1.5.1", "torch": "2.13.0"},
        ),
        stages=tuple(
            Stage(name, seconds, resumed)
            for name, seconds, resumed in (
                *(("profile", 0.1, False), ("capture", 9.0, False), ("sites", 0.4, False)),
                *(("score", 88.0, True), ("cost", 240.0, True), ("solve", 61.0, False)),
                *(("recover", 720.0, False), ("lower", 14.0, False), ("validate", 96.0, False)),
            )
        ),
    )


def not_measured() -> Report:
    """The same plan for a phone that is not at hand: every cost is an estimate."""
    report = sample()
    dense, pruned = _estimate(9.1, 66.0, 33.9, 0.7642), _estimate(5.4, 52.0, 27.0, 0.7556)
    rounds = tuple(
        replace(
            each,
            dense_ms=None,
            candidates=tuple(replace(c, measured_ms=None) for c in each.candidates),
        )
        for each in report.rounds[-1:]
    )
    note = "pixel8: the Edge TPU cannot be lowered to yet; using executorch + XNNPACK on the CPU"
    return replace(
        report,
        target=replace(
            report.target,
            name="pixel8",
            title="Google Pixel 8",
            soc="Tensor G3",
            estimated=True,
            note=note,
        ),
        bounds=replace(report.bounds, latency_ms=5.46, estimated=True),
        outcome=Outcome("not_measured", "", report.outcome.checks[:1]),
        dense=dense,
        pruned=pruned,
        rounds=rounds,
        costs=Costs(ESTIMATED, "2026-11-21T09:12:00+00:00", 0, {}),
        operators=Operators((), ()),
        state=None,
        flags=(),
    )


def vendor_estimated() -> Report:
    """The same, with costs by the compiler of an NPU."""
    report = not_measured()
    by_vendor = {
        name: replace(model, p50_ms=replace(model.p50_ms, provenance=VENDOR_ESTIMATED))
        for name, model in (("dense", report.dense), ("pruned", report.pruned))
        if model.p50_ms
    }
    target = replace(
        report.target, runtime="litert", delegate="off", accelerator="ethos-u55-256", note=None
    )
    costs = replace(report.costs, provenance=VENDOR_ESTIMATED)
    return replace(report, target=target, costs=costs, **by_vendor)


def bare() -> Report:
    """All that may be missing is missing: not run, not timed, no tokens, one cut axis."""
    nothing = Model(None, None, None, None, None, None, None, None)
    rows = tuple(
        Layer(f"features.{i}.conv", "channels", tuple(range(0, 64 - 8 * i)), 64, None, None, False)
        for i in range(4)
    )
    whole = Layer("features.4.conv", None, (0,), 1, None, None, False)
    return replace(
        not_measured(),
        dense=replace(nothing, p50_ms=Number(9.1, ESTIMATED)),
        pruned=nothing,
        comparison=None,
        layers=(*rows, whole),
        recovery=None,
        numerics=None,
        front=Front((), sample().front.certificate),
        rounds=(),
    )


def sample_layers(layers: int) -> tuple[Layer, ...]:
    """Attention and ffn in turns; some heads, neurons, tokens and whole sub-layers are gone."""
    drops = {round(layers * share): keep for share, keep in ((0.2, 96), (0.5, 64), (0.75, 40))}
    rows = []
    tokens = TOKENS
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        heads = tuple(h for h in range(HEADS) if (5 * h + 3 * layer) % 12 >= (2 * layer) % 7)
        left = drops.get(layer, tokens)
        rows.append(
            Layer(f"{name}.attention", "heads", heads, HEADS, tokens, left, layer == layers - 1)
        )
        tokens = left
        wave = [math.sin(n * (layer + 1) / 150) + math.sin(n * 12.9) for n in range(NEURONS)]
        limit = sorted(wave)[192 * (layer % 6)]
        neurons = tuple(n for n, height in enumerate(wave) if height >= limit)
        gone = layer % 6 == 3
        rows.append(Layer(f"{name}.ffn", "ffn", neurons, NEURONS, tokens, tokens, gone))
    return tuple(rows)


def _target() -> Target:
    sources = (
        Source("clusters.all.peak_gflops_fp32", "measured", "matrix product on one core"),
        Source("memory.bandwidth_gbps", "measured", "a large copy"),
        Source("multiples.ffn", "estimated", "columns of the kernel's tile"),
    )
    return Target(
        *("host", "This machine", "AMD EPYC 9654", "executorch", "auto", "int8"),
        *("cpu", False, None, sources),
    )


def _checks() -> tuple[Check, ...]:
    return (
        Check("numerics", True, 0.9972, 0.99, "lowest cosine of 64 examples"),
        Check("latency_ms", True, 6.71, 6.85, "p50, measured"),
        Check("peak_memory_mb", None, 48.7, None, "measured; no bound"),
        Check("faster_than_dense", True, 6.71, 11.42, "median ms; saves at least 4.6 ms (95%)"),
    )


def _model(
    times: tuple[float, float, float],
    first: float,
    load: float,
    memory: float,
    size: float,
    score: float,
) -> Model:
    return Model(*(Number(each, HERE) for each in (*times, first, load, memory, size, score)))


def _estimate(ms: float, memory: float, size: float, score: float) -> Model:
    latency, space = Number(ms, ESTIMATED), Number(memory, ESTIMATED)
    return Model(
        None, latency, None, None, None, space, Number(size, HERE), score=Number(score, HERE)
    )


def _front() -> Front:
    points = [
        FrontPoint(4.2 + 0.18 * i, 0.9 * math.exp(-0.11 * i), False, False, None) for i in range(38)
    ]
    tried = [
        FrontPoint(c.predicted_ms, c.damage, c.chosen, True, c.score)
        for c in _rounds()[-1].candidates
    ]
    proof = Certificate("dp", 0.1948, 0.0, True, "latency", 0.31, "the front is exact")
    return Front((*points, *tried), proof)


def _rounds() -> tuple[Round, ...]:
    first = [(6.74, 7.11, 0.185), (6.71, 7.02, 0.21), (6.73, 6.99, 0.2)]
    second = [(6.74, 6.82, 0.212, 0.7391), (6.72, 6.71, 0.224, 0.7432), (6.70, 6.74, 0.23, 0.7388)]
    return (
        Round(1.0, 6.85, 11.4, tuple(Candidate(*each, None, False) for each in first)),
        Round(1.045, 6.85, 11.42, tuple(Candidate(*each, each[3] == 0.7432) for each in second)),
    )


def _curve() -> tuple[tuple[int, float], ...]:
    return tuple(
        (step, 0.16 + 0.3 * math.exp(-step / 180) + 0.02 * math.sin(step * 7.3))
        for step in range(1, 1200, 4)
    )


def _operators(factor: float) -> tuple[Operator, ...]:
    return tuple(Operator(name, calls, factor * ms, d) for name, calls, ms, d in OPERATORS)
