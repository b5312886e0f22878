"""Depth surgery: a removed sub-layer or layer becomes the identity."""

from __future__ import annotations

from edgeprune.plan import Plan
from edgeprune.surgery.draft import Draft


def cut_depth(draft: Draft, plan: Plan) -> None:
    """Let the readers of a removed residual sum read the stream that came in."""
    # A removed layer takes its sub-layers along, whatever the plan says of them.
    ends = [
        (r.entry, r.add)
        for r in draft.sites.residuals
        if r.name in plan.kept and r.layer not in plan.kept
    ]
    ends += [(layer.entry, layer.exit) for layer in draft.sites.layers if layer.name in plan.kept]
    for first, last in ends:
        entry, end = draft.copies[first], draft.copies[last]
        while entry in draft.stands_for:
            entry = draft.stands_for[entry]
        end.replace_all_uses_with(entry)
        draft.stands_for[end] = entry
