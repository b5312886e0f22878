"""Small untrained networks that criteria are checked on, where structure can be planted."""

from __future__ import annotations

import torch
from models import noise
from torch import Tensor, nn

from edgeprune.importance import Evidence
from edgeprune.program import capture
from edgeprune.sites import Site, find_sites

CHANNELS = 32


class Convolutions(nn.Module):
    """Two convolutions with batch norm; the second reads the channels that tests are about."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
        self.second, self.head = nn.Conv2d(CHANNELS, 12, 3, padding=1), nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.first(images)).relu()
        return self.head(self.second(x).relu().mean((2, 3)))


def convolutions(seed: int = 0) -> Convolutions:
    """The network, its batch norm not the identity."""
    torch.manual_seed(seed)
    network = Convolutions().eval()
    nn.init.uniform_(network.norm.weight, 0.2, 1.8)
    nn.init.normal_(network.norm.bias, 0.0, 0.3)
    return network


def about(network: nn.Module, *shape: int, labels: bool = False) -> tuple[Evidence, Site]:
    """Evidence from two batches of noise [*shape], and the first site.

    Args:
        network: what to analyse.
        shape: of a batch.
        labels: whether the network's own answers are given as labels.
    """
    batches = [(noise(*shape, seed=seed),) for seed in (1, 2)]
    sites = find_sites(capture(network, batches[0]))
    answers = [network(*batch).argmax(-1) for batch in batches] if labels else None
    site = next(site for site in sites.cuttable if site.kind == "width")
    return Evidence(sites, batches, labels=answers), site


def double_half(network: Convolutions, seed: int) -> list[tuple[int, int]]:
    """Let half of the first channels copy the other half with 2% noise: (original, copy)."""
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(seed))
    originals, copies = order.chunk(2)
    norm = network.norm
    with torch.no_grad():
        weight = network.first.weight
        spread = 0.02 * weight.std()
        weight[copies] = weight[originals] + spread * noise(*weight[copies].shape, seed=seed)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for each in (network.first.bias, norm.weight, norm.bias, norm.running_mean):
            assert each is not None
            each[copies] = each[originals]
        norm.running_var[copies] = norm.running_var[originals]
    return list(zip(originals.tolist(), copies.tolist(), strict=True))
