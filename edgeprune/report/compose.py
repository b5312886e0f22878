"""What goes into ``report.json``: numbers from the build's own nouns, and nothing of the user's.

No input, no calibration sample, no path and no user name gets in: only names of sites, files by
name, measurements, versions, and the words of the task and the profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgeprune.budget import Budget
from edgeprune.devices.device import OperatorTime
from edgeprune.formulate import Choices
from edgeprune.lower import Artifact
from edgeprune.plan import Plan
from edgeprune.profile import Profile
from edgeprune.recover import Distilled
from edgeprune.search import Search, SearchResult
from edgeprune.stages import StageTime
from edgeprune.validate import Verdict
from edgeprune.validate.timing import MB_PER_MIB

# Points of a curve that a page can show.
MOST_POINTS = 200


def compose(
    *,
    search: Search,
    found: SearchResult,
    verdict: Verdict,
    profile: Profile,
    budget: Budget,
    artifact: Artifact,
    distilled: Distilled | None,
    operators: dict[str, Sequence[OperatorTime]],
    stages: Sequence[StageTime],
    command: str,
) -> dict[str, Any]:
    """The body of ``report.json``.

    Args:
        operators: "dense" and "pruned" -> time per operator; empty without a device.
        command: how to make it again.
    """
    estimated = search.device is None
    return {
        "title": search.task.name,
        "score_name": search.task.score_name,
        "licence": search.task.licence,
        "status": verdict.status,
        "reason": verdict.reason,
        "estimated": estimated,
        "profile": _profile(profile, search),
        "budget": {"asked": str(budget), **asdict(search.bounds)},
        "dense": _model(verdict, "dense"),
        "pruned": _model(verdict, "pruned"),
        "interval": verdict.scores and verdict.scores.interval,
        "cosine": verdict.scores and verdict.scores.cosine,
        "checks": [asdict(check) for check in verdict.checks],
        "layers": layers(search.choices, found.plan),
        "front": [{"latency_ms": p.latency_ms, "damage": p.damage} for p in found.solution.front],
        "certificate": asdict(found.solution.certificate),
        "rounds": [_round(each, found.plan) for each in found.rounds],
        "table": {
            "provenance": search.table.provenance,
            "date": search.table.date,
            "error_pct": search.table.error_pct,
        },
        "recovery": None if distilled is None else _recovery(distilled),
        "operators": {name: [asdict(op) for op in ops] for name, ops in operators.items()},
        "delegation": _delegation(artifact),
        "state": verdict.timing and asdict(verdict.timing.pruned.state),
        "reproduce": {
            "command": command,
            "plan": found.plan.hash,
            "file": artifact.path.name,
            "sha256": artifact.sha256,
            "versions": search.table.versions,
        },
        "stages": [asdict(stage) for stage in stages],
    }


def layers(choices: Sequence[Choices], plan: Plan) -> list[dict[str, Any]]:
    """One row per sub-layer: what is left of it, and how many tokens come in and go on."""
    rows = []
    tokens: dict[object, int] = {}
    for choice in choices:
        site, stream = choice.site, choice.stream
        before = tokens.get(stream.tokens, stream.tokens.size) if stream else None
        after = plan.tokens.get(stream.name, before) if stream else None
        if stream:
            tokens[stream.tokens] = after or 0
        rows.append(
            {
                "name": choice.residual.name,
                "axis": site.axis if site else None,
                "total": site.units if site else 1,
                "kept": list(plan.kept.get(site.name, range(site.units))) if site else [0],
                "removed": choice.residual.name in plan.kept,
                "tokens_in": before,
                "tokens_out": after,
            }
        )
    return rows


def _profile(profile: Profile, search: Search) -> dict[str, Any]:
    return {
        "name": profile.name,
        "title": profile.title,
        "soc": profile.soc,
        "runtime": profile.runtime,
        "delegate": profile.delegate,
        "precision": search.precision,
        "note": profile.lowering_note(),
        "provenance": {path: asdict(note) for path, note in profile.provenance.items()},
    }


def _model(verdict: Verdict, which: str) -> dict[str, Any]:
    """What is known of one file: measured numbers, or the prediction where there are none."""
    scores = verdict.scores
    score = None if scores is None else scores.dense if which == "dense" else scores.file
    if verdict.timing is None:
        known = verdict.predicted if which == "pruned" else None
        latency = known and known.latency_ms
        return {
            "latency_ms": latency,
            "memory_mb": known and known.peak_memory_mb,
            "score": score,
        }
    measured = getattr(verdict.timing, which)
    return {
        "latency_ms": measured.p50_ms,
        "min_ms": measured.min_ms,
        "p90_ms": measured.p90_ms,
        "first_run_ms": measured.first_run_ms,
        "load_ms": measured.load_ms,
        "memory_mb": measured.peak_memory_mb and measured.peak_memory_mb * MB_PER_MIB,
        "size_mb": measured.file_size_mb * MB_PER_MIB,
        "score": score,
    }


def _round(each: Any, plan: Plan) -> dict[str, Any]:
    return {
        "correction": each.correction,
        "bound_ms": each.bound_ms,
        "dense_ms": each.dense_ms,
        "candidates": [
            {
                "predicted_ms": c.predicted_ms,
                "measured_ms": c.measured_ms,
                "damage": c.damage,
                "score": c.score,
                "chosen": c.plan == plan,
            }
            for c in each.candidates
        ],
    }


def _recovery(distilled: Distilled) -> dict[str, Any]:
    step = max(1, len(distilled.curve) // MOST_POINTS)
    return {
        "curve": [list(point) for point in distilled.curve[::step]],
        "seconds": distilled.seconds,
        "steps": distilled.steps,
        "loss_before": distilled.loss_before,
        "loss_after": distilled.loss_after,
    }


def _delegation(artifact: Artifact) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for row in artifact.delegation:
        if row.delegate == "cpu":
            text = f"{row.op}: {row.why_not}"
            reasons[text] = reasons.get(text, 0) + 1
    return {
        "delegated": artifact.delegated_nodes,
        "operators": len(artifact.delegation),
        "why_not": reasons,
    }
