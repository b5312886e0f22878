"""discriminative: units that rebuild the next layer and tell classes apart (Zhuang 2018, "DCP").

"Discrimination-aware channel pruning" (arXiv 1810.11809). Greedy: starting from no unit, those
join whose weights have the largest gradient of the reconstruction error plus the cross-entropy of
an auxiliary classifier behind the layer; then the weights of those in are fitted anew. The paper
puts its classifiers at a few depths and trains network and classifier by SGD; here each layer has
one, a linear one on the mean of the (smoothly) rectified features, and the fits are in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.importance.criterion import criterion
from edgeprune.importance.evidence import Evidence
from edgeprune.importance.readers import Reader, augmented, refitted
from edgeprune.sites import Site

BALANCE = 1.0
"""Of the cross-entropy's gradient to the reconstruction error's, each taken at length 1."""

TURNS = 16
PROBE_STEPS = 50
WEIGHT_DECAY = 1e-3


def _applies(evidence: Evidence, site: Site) -> bool:
    labels = evidence.labels
    return (
        site.name in evidence.readers
        and labels is not None
        and all(each.ndim == 1 and not each.is_floating_point() for each in labels)
    )


@criterion(
    "discriminative",
    needs="labels",
    across_layers=False,
    where="all that one matrix of its own reads, in classifiers",
    applies=_applies,
)
def discriminative(evidence: Evidence, site: Site) -> Tensor:
    """How early each unit joins, the first highest: [units]."""
    assert evidence.labels is not None
    reader = evidence.readers[site.name]
    tensors = evidence.sites.program.tensors
    rows = [reader.features(x) for (x,) in evidence.values([reader.source])]
    examples = sum(len(labels) for labels in evidence.labels)
    x = torch.cat(rows).view(examples, -1, rows[0].shape[1])
    whole = augmented(tensors[reader.weight], tensors[reader.bias] if reader.bias else None)
    layer = _Layer(x.detach(), whole.float(), evidence.grams[site.name], torch.cat(evidence.labels))
    order = layer.joining_order(reader, site.units)
    scores = torch.empty(site.units)
    scores[order] = torch.arange(site.units, 0, -1, dtype=torch.float32)
    return scores


class _Layer:
    """One layer's data, its wanted features, and a classifier trained on them.

    Args:
        x: what the matrix multiplies, [examples, places, columns].
        whole: the matrix with its bias, [out, columns + 1].
        gram: second moments of ``x`` with a constant, for fits.
        labels: class numbers, [examples].
    """

    def __init__(self, x: Tensor, whole: Tensor, gram: Tensor, labels: Tensor) -> None:
        self._x = x
        self._whole = whole
        self._gram = gram
        self._labels = labels
        self._wanted = x @ whole[:, :-1].T + whole[:, -1]
        self._centre = self._wanted.mean((0, 1))
        self._scale = self._wanted.var((0, 1)).clamp(min=1e-12).sqrt()
        self._probe = _trained_probe(self._pooled(self._wanted), labels)

    def joining_order(self, reader: Reader, units: int) -> Tensor:
        """Units in the order in which they join: [units]."""
        order = torch.empty(0, dtype=torch.long)
        while len(order) < units:
            strength = self._gradient(reader, order.tolist())
            own = reader.unit_of >= 0
            each = torch.zeros(units).index_add(0, reader.unit_of[own], strength[own])
            each[order] = -1.0
            joining = each.argsort(descending=True, stable=True)[: -(-units // TURNS)]
            order = torch.cat([order, joining[: units - len(order)]])
        return order

    def _gradient(self, reader: Reader, chosen: list[int]) -> Tensor:
        """Squared gradient of the joint loss by every column of the matrix: [columns]."""
        columns = reader.columns(tuple(chosen))
        best = refitted(self._whole.double(), self._gram, columns, constant=True).float()
        with torch.enable_grad():
            y = self._x[..., columns] @ best[:, :-1].T + best[:, -1]
            y.requires_grad_()
            rebuilt = ((y - self._wanted) / self._scale).square().mean()
            told = functional.cross_entropy(self._probe(self._pooled(y)), self._labels)
            slopes = [torch.autograd.grad(loss, [y])[0] for loss in (rebuilt, told)]
        one, other = (torch.einsum("npo,npc->oc", slope, self._x) for slope in slopes)
        joint = one / one.norm().clamp(min=1e-30) + BALANCE * other / other.norm().clamp(min=1e-30)
        return joint.square().sum(0)

    def _pooled(self, y: Tensor) -> Tensor:
        return functional.gelu((y - self._centre) / self._scale).mean(1)


def _trained_probe(features: Tensor, labels: Tensor) -> torch.nn.Linear:
    """A linear classifier of features [examples, out], by L-BFGS from zero."""
    with torch.enable_grad():
        probe = torch.nn.Linear(features.shape[1], int(labels.max()) + 1)
        torch.nn.init.zeros_(probe.weight)
        torch.nn.init.zeros_(probe.bias)
        found = torch.optim.LBFGS(
            probe.parameters(), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            found.zero_grad()
            value = functional.cross_entropy(probe(features), labels)
            value = value + WEIGHT_DECAY * probe.weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        found.step(loss)  # type: ignore[no-untyped-call]
    return probe.requires_grad_(False)
