"""A few images are enough to recover from a cut, if they are mixed."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from _digits_cnn import accuracy, digits, narrower, train, trained
from bench_criteria import best, evidence_of, widths

from edgeprune.errors import InputError
from edgeprune.importance import CRITERIA
from edgeprune.plan import Plan
from edgeprune.recover import distil, grid_mixed, reestimate
from edgeprune.surgery import apply

FEW, SEEDS, STEPS = 50, 3, 400


def test_every_cell_of_a_mixed_image_is_one_of_two_images() -> None:
    images = torch.arange(3.0)[:, None, None, None].expand(3, 2, 7, 10)
    (mixed,) = next(grid_mixed(images, batch=64))
    assert mixed.shape == (64, 2, 7, 10)
    assert all(len(image.unique()) <= 2 for image in mixed)
    assert {float(value) for value in mixed.unique()} == {0.0, 1.0, 2.0}
    rows, columns = (
        torch.tensor([0, 0, 1, 1, 2, 2, 3]),
        torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
    )
    corners = mixed[:, :, [0, 2, 4, 6]][..., [0, 3, 5, 8]]
    assert torch.equal(mixed, corners[:, :, rows][..., columns])
    assert any(len(image.unique()) == 2 for image in mixed)


def test_the_same_seed_mixes_the_same() -> None:
    images = torch.rand(5, 1, 8, 8)
    first, again, other = (islice(grid_mixed(images, seed=s), 3) for s in (1, 1, 2))
    for (a,), (b,), (c,) in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (5, 8, 8), (5, 1, 8, 3)])
def test_what_cannot_be_mixed_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"grid_mixed: got images of shape .* wanted .* Give"):
        grid_mixed(torch.rand(shape))


@pytest.mark.nightly
def test_fifty_images_without_labels_recover_more_than_fifty_labels() -> None:
    """FSS: a quarter of the channels stays, chosen, measured anew and trained with 50 images."""
    distilled, tuned = [], []
    for seed in range(SEEDS):
        dense = trained(seed)
        images, labels = digits().images[:FEW], digits().labels[:FEW]
        evidence = evidence_of(dense, images, labels)
        kept = {
            site.name: best(CRITERIA["feature_correlation"], evidence, site, site.units // 4)
            for site in widths(evidence, "channels")
        }
        program = evidence.sites.program
        cut = apply(program, Plan(program.fingerprint, kept), evidence.sites)
        slim = reestimate(cut, [(images,)])
        batches = grid_mixed(images, seed=seed)
        found = distil(slim, program, batches, steps=STEPS, learning_rate=3e-3, seed=seed)
        distilled.append(accuracy(found.program.module) / accuracy(dense))
        tuned.append(accuracy(train(narrower(slim), seed, STEPS, FEW)) / accuracy(dense))
    assert np.mean(distilled) >= 0.9
    assert np.mean(distilled) > np.mean(tuned)
