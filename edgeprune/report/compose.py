"""From a build's own nouns to a ``Report``: numbers and names, and nothing of the user's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import edgeprune
from edgeprune import files
from edgeprune.budget import Budget
from edgeprune.candidates import SearchResult
from edgeprune.cost.plans import DENSE
from edgeprune.devices import DeviceState, Measurement, OperatorTime
from edgeprune.devices.measurement import EMULATED
from edgeprune.formulate import Choices
from edgeprune.lower import Artifact
from edgeprune.lower.lowering import CPU
from edgeprune.plan import Plan
from edgeprune.profile import Profile
from edgeprune.recover import Distilled
from edgeprune.report.schema import (
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
from edgeprune.search import Search
from edgeprune.stages import StageTime
from edgeprune.validate import Verdict
from edgeprune.validate.timing import MB_PER_MIB

# Points of a curve that a page can show.
MOST_POINTS = 300
# Of a device; its driver may tell more, of which some is the user's own.
FACTS = ("screen", "charging", "battery", "virtual machine", "fixed performance mode", "emulated")
HERE = measured_on("this machine")


def compose(
    *,
    search: Search,
    found: SearchResult,
    verdict: Verdict,
    profile: Profile,
    budget: Budget,
    artifact: Artifact,
    distilled: Distilled | None,
    operators: dict[str, tuple[OperatorTime, ...]],
    stages: Sequence[StageTime],
    command: str,
) -> Report:
    """Put a report together.

    Args:
        operators: "dense" and "pruned" -> time per operator; empty without a device.
        command: how to make it again, without folders.
    """
    rounds = tuple(
        Round(
            each.correction.latency,
            each.bound_ms,
            each.dense_ms,
            tuple(
                Candidate(
                    predicted_ms=c.predicted_ms,
                    measured_ms=c.measured_ms,
                    damage=c.damage,
                    score=c.score,
                    chosen=c is found.chosen,
                )
                for c in each.candidates
            ),
        )
        for each in found.rounds
    )
    timing = verdict.timing
    return Report(
        title=search.task.name,
        score_name=search.task.score_name,
        licence=files.without_folders(search.task.licence),
        target=_target(profile, search),
        bounds=_bounds(budget, search, verdict),
        outcome=Outcome(verdict.status, verdict.reason, verdict.checks),
        dense=_dense(search, verdict),
        pruned=_pruned(search, found, verdict, artifact),
        comparison=_comparison(verdict),
        layers=layers(search.choices, found.plan),
        front=_front(found, rounds),
        rounds=rounds,
        costs=Costs(
            search.table.provenance,
            search.table.date,
            sum(name == DENSE or name.startswith("plan ") for name in search.table.samples),
            search.table.error_pct,
        ),
        recovery=None if distilled is None else _recovery(distilled, verdict),
        operators=Operators(
            *(_operators(operators.get(which, ())) for which in ("dense", "pruned"))
        ),
        delegation=_delegation(artifact),
        numerics=verdict.numerics,
        state=None if timing is None else _state(timing.pruned.state),
        flags=() if timing is None else timing.flags,
        reproduce=Reproduce(
            command,
            found.plan.hash,
            artifact.path.name,
            artifact.sha256,
            {"edgeprune": edgeprune.__version__, **search.table.versions},
        ),
        stages=tuple(Stage(each.name, each.seconds, each.resumed) for each in stages),
    )


def layers(choices: Sequence[Choices], plan: Plan) -> tuple[Layer, ...]:
    """One row per sub-layer and spanning site: what is left, and how many tokens come and go."""
    rows = []
    tokens: dict[object, int] = {}
    for choice in choices:
        site, stream = choice.site, choice.stream
        before = tokens.get(stream.tokens, stream.tokens.size) if stream else None
        after = plan.tokens.get(stream.name, before) if stream else None
        if stream:
            tokens[stream.tokens] = after or 0
        rows.append(
            Layer(
                name=choice.name,
                axis=site.axis if site else None,
                kept=tuple(plan.kept.get(site.name, range(site.units))) if site else (0,),
                total=site.units if site else 1,
                tokens_in=before,
                tokens_out=after,
                removed=choice.residual is not None and choice.name in plan.kept,
            )
        )
    return tuple(rows)


def _target(profile: Profile, search: Search) -> Target:
    return Target(
        name=profile.name,
        title=profile.title,
        soc=profile.soc,
        **({"accelerator": CPU} | search.lowering.words),
        estimated=search.device is None,
        note=profile.lowering_note() if search.lowering.offload is None else None,
        sources=tuple(
            Source(path, note.origin, note.source) for path, note in profile.provenance.items()
        ),
    )


def _bounds(budget: Budget, search: Search, verdict: Verdict) -> Bounds:
    bounds = verdict.timing.resolve(budget) if verdict.timing else search.bounds
    asked = (budget.latency, budget.peak_memory, budget.size)
    return Bounds(
        asked=str(budget),
        latency_ms=bounds.latency_ms,
        percentile=bounds.percentile,
        peak_memory_mb=bounds.peak_memory_mb,
        size_mb=bounds.size_mb,
        min_score=bounds.min_score,
        estimated=search.device is None and any(each and each.relative for each in asked),
    )


def _dense(search: Search, verdict: Verdict) -> Model:
    score = None if verdict.scores is None else Number(verdict.scores.dense, HERE)
    if verdict.timing is not None:
        return _measured(verdict.timing.dense, score)
    guess = search.table.predict(search.sites, Plan(search.sites.program.fingerprint))
    size = search.dense.stat().st_size if search.dense else None
    memory = guess.peak_memory_mb * MB_PER_MIB
    return _estimated(guess.latency_ms, memory, size, score, search.table.provenance)


def _pruned(search: Search, found: SearchResult, verdict: Verdict, artifact: Artifact) -> Model:
    score = None if verdict.scores is None else Number(verdict.scores.file, HERE)
    if verdict.timing is not None:
        return _measured(verdict.timing.pruned, score)
    latency = found.chosen.predicted_ms
    memory = search.table.predict(search.sites, found.plan).peak_memory_mb * MB_PER_MIB
    if verdict.predicted is not None and verdict.predicted.vendor:
        # Of this very file, not the sum of its pieces.
        latency, memory = verdict.predicted.latency_ms, verdict.predicted.peak_memory_mb
    return _estimated(latency, memory, artifact.size_bytes, score, search.table.provenance)


def _measured(found: Measurement, score: Number | None) -> Model:
    where = measured_on(_kind(found.state.device))
    if found.state.emulated:
        where = f"{where}, {EMULATED}"
    memory = found.peak_memory_mb
    return Model(
        min_ms=Number(found.min_ms, where),
        p50_ms=Number(found.p50_ms, where),
        p90_ms=Number(found.p90_ms, where),
        first_run_ms=_told(found.first_run_ms, where),
        load_ms=_told(found.load_ms, where),
        peak_memory_mb=_told(memory and memory * MB_PER_MIB, where),
        size_mb=Number(found.file_size_mb * MB_PER_MIB, where),
        score=score,
    )


def _told(value: float | None, where: str) -> Number | None:
    return None if value is None else Number(value, where)


def _estimated(
    latency_ms: float,
    memory_mb: float,
    size_bytes: int | None,
    score: Number | None,
    provenance: str,
) -> Model:
    return Model(
        min_ms=None,
        p50_ms=Number(latency_ms, provenance),
        p90_ms=None,
        first_run_ms=None,
        load_ms=None,
        peak_memory_mb=Number(memory_mb, provenance),
        size_mb=None if size_bytes is None else Number(size_bytes / 1e6, HERE),
        score=score,
    )


def _comparison(verdict: Verdict) -> Comparison | None:
    scores = verdict.scores
    if scores is None:
        return None
    interval = scores.interval and (100 * scores.interval[0], 100 * scores.interval[1])
    return Comparison(100 * scores.difference, interval, scores.examples, scores.cosine)


def _front(found: SearchResult, rounds: Sequence[Round]) -> Front:
    """The front with the last correction, and the candidates that met the budget."""
    plain = [
        FrontPoint(p.latency_ms * rounds[-1].correction, p.damage, False, False, None)
        for p in found.front
    ]
    tried = [
        FrontPoint(c.predicted_ms, c.damage, c.chosen, True, c.score)
        for each in rounds
        for c in each.candidates
        if c.score is not None or c.chosen
    ]
    return Front((*plain, *tried), found.chosen.certificate)


def _recovery(distilled: Distilled, verdict: Verdict) -> Recovery:
    step = max(1, len(distilled.curve) // MOST_POINTS)
    return Recovery(
        curve=tuple(distilled.curve[::step]),
        seconds=distilled.seconds,
        steps=distilled.steps,
        loss_before=distilled.loss_before,
        loss_after=distilled.loss_after,
        improved=distilled.improved,
        score=None if verdict.scores is None else verdict.scores.recovered,
    )


def _operators(times: Sequence[OperatorTime]) -> tuple[Operator, ...]:
    return tuple(Operator(each.op, each.calls, each.ms, each.delegate != "cpu") for each in times)


def _delegation(artifact: Artifact) -> Delegation:
    left = Counter((row.op, row.why_not) for row in artifact.delegation if not row.delegated)
    reasons = tuple(WhyNot(op, reason, count) for (op, reason), count in left.most_common())
    return Delegation(artifact.delegated_nodes, len(artifact.delegation), reasons)


def _state(state: DeviceState) -> DeviceState:
    """The state with the kind of the device alone: its address is the user's."""
    facts = {name: state.facts[name] for name in FACTS if name in state.facts}
    return replace(state, device=_kind(state.device), facts=facts)


def _kind(device: str) -> str:
    kind = device.partition(":")[0]
    return "this machine" if kind == "local" else kind
