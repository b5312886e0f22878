"""Recovery at a smaller input: the teacher reads the full size, the cut program its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import lengths
import torch

from edgeprune.plan import Plan
from edgeprune.recover import distil, refit
from edgeprune.sites import find_sites
from edgeprune.task import Batch

SOUND = (4, 24)


def batches() -> Iterator[Batch]:
    for seed in count():
        yield (torch.randn(8, *SOUND, generator=torch.Generator().manual_seed(seed)),)


def test_full_size_batches_refit_and_distil_a_smaller_program() -> None:
    _, dense = lengths.build("keywords", torch.float32)
    sites = find_sites(dense)
    (channels,) = [s.name for s in sites.cuttable if s.axis == "channels"][:1]
    plan = Plan(dense.fingerprint, {channels: (0, 2, 3, 5, 6)}, length={"sound.time": 12})
    stream = batches()
    calibration = [next(stream) for _ in range(2)]
    slim = refit(sites, plan, calibration)
    assert tuple(slim.example_inputs[0].shape) == (3, 4, 12)
    trained = distil(slim, dense, batches(), steps=8, learning_rate=1e-2, seed=0)
    assert trained.loss_after < trained.loss_before
    assert trained.program.resized == slim.resized
