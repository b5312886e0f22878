"""Depth surgery: a removed sub-layer or layer becomes the identity."""

from __future__ import annotations

from edgeprune.plan import Plan
from edgeprune.surgery.draft import Draft


def cut_depth(draft: Draft, plan: Plan) -> None:
    """Let the readers of a removed residual sum read the stream that came in."""
    # Layers first: a pre-norm layer ends where its last sub-layer does, and takes more along.
    ends = {layer.name: (layer.entry, layer.exit) for layer in draft.sites.layers}
    ends |= {r.name: (r.entry, r.add) for r in draft.sites.residuals}
    for name, (first, last) in ends.items():
        if name in plan.kept:
            entry, end = draft.copies[first], draft.copies[last]
            while entry in draft.stream:
                entry = draft.stream[entry]
            end.replace_all_uses_with(entry)
            draft.stream[end] = entry
