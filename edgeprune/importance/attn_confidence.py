"""attn_confidence: a head's mean largest attention weight (Voita et al. 2019, "confidence")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.program.graph import ATEN, MASKED, calls, shape
from edgeprune.sites import Site
from edgeprune.sites.atoms import unit_numbers


def _attention_of(evidence: Evidence, site: Site) -> fx.Node | None:
    atom = evidence.sites.atoms[site.name]
    for node in calls(evidence.sites.program.module.graph, ATEN.scaled_dot_product_attention):
        if evidence.sites.flow.of(node)[1].contains(atom):
            return node
    return None


@criterion(
    "attn_confidence",
    needs="data",
    across_layers=True,
    where="heads, kv groups and queries per group",
    applies=lambda evidence, site: _attention_of(evidence, site) is not None,
)
def attn_confidence(evidence: Evidence, site: Site) -> Tensor:
    """Mean over real queries of the largest probability; a kv group's is its heads': [units]."""
    call = _attention_of(evidence, site)
    assert call is not None
    operands = [n for n in call.args[:4] if isinstance(n, fx.Node)]
    scale = call.kwargs.get("scale") or 1 / math.sqrt(shape(call.args[0])[-1])
    confidence = torch.zeros(shape(call)[1])
    queries = 0.0
    own_keys = _is_self_attention(evidence, call)
    for query, key, _, *mask in evidence.values(operands):
        logits = query @ key.transpose(-1, -2) * scale + (mask[0] if mask else 0.0)
        real = torch.ones(len(query), query.shape[2])
        if mask and own_keys:  # a query that no query may look at is padding
            real *= (mask[0].expand_as(logits) > MASKED / 2).any(2).any(1)
        confidence += (logits.softmax(-1).amax(-1) * real[:, None]).sum((0, 2))
        queries += float(real.sum())
    numbers = torch.tensor(
        unit_numbers(evidence.sites.flow.of(call)[1], evidence.sites.atoms[site.name])
    )
    means = [confidence[numbers == unit].mean() for unit in range(site.units)]
    return torch.stack(means) / queries


def _is_self_attention(evidence: Evidence, call: fx.Node) -> bool:
    queries, keys = (evidence.sites.flow.of(operand)[2].root for operand in call.args[:2])
    return queries is keys
