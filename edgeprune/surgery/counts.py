"""Means after a cut: they divide by as many entries as before, as if those removed were 0."""

from __future__ import annotations

import math

from edgeprune.program.graph import ATEN, calls
from edgeprune.sites.atoms import positions
from edgeprune.sites.rules.reduction import reduced
from edgeprune.surgery.draft import Draft


def keep_counts(draft: Draft) -> None:
    """Multiply every mean over a cut dimension by the share of it that is left.

    A root mean square norm then normalises as the masked one does: x / sqrt(d'/d mean(x^2) + eps).
    """
    for node in calls(draft.module.graph, ATEN.mean):
        if node not in draft.origin:
            continue
        original, _ = draft.origin[node]
        dims = [draft.sites.flow.of(original.args[0])[axis] for axis in reduced(original)]
        left = math.prod(len(positions(dim, draft.kept)) for dim in dims)
        whole = math.prod(dim.size for dim in dims)
        if left < whole:
            with draft.module.graph.inserting_after(node):
                mean = draft.emit(ATEN.mul.Tensor, node, left / whole)
            node.replace_all_uses_with(mean, delete_user_cb=lambda user, new=mean: user is not new)
