"""What criteria share: weights, values and contributions of units, and orders of removal."""

from __future__ import annotations

import pytest
import torch
from models import HEADS, NEURONS, TOKENS, WIDTH, inputs, sites
from small import CHANNELS, about, convolutions
from torch import nn

from edgeprune.importance import Evidence
from edgeprune.importance.next_layer_recon import removal_order
from edgeprune.importance.units import (
    Matrix,
    matrices,
    own_rows,
    read_by_matrices,
    redundancy_order,
    steps,
    unit_values,
    weight_rows,
)


def test_weights_are_told_from_statistics_and_own_ones_from_those_that_read() -> None:
    evidence, site = about(convolutions(), 3, 2, 6, 6)
    every = dict(weight_rows(evidence.sites, site))
    own = dict(own_rows(evidence.sites, site))
    computing = {"first.weight", "first.bias", "norm.weight", "norm.bias"}
    assert set(own) == computing
    assert set(every) == computing | {"second.weight"}
    tensors = evidence.sites.program.tensors
    for path, columns in (("first.weight", 1), ("second.weight", 0)):
        wanted = tensors[path].detach().movedim(1 - columns, 0).flatten(1).double()
        torch.testing.assert_close(every[path], wanted)


@pytest.mark.parametrize(
    ("model", "site", "wanted"),
    [
        ("fused", "layers.0.heads", [(5, HEADS, TOKENS, WIDTH // HEADS)]),
        ("torch_encoder", "encoder.layers.0.heads", [(5, HEADS, TOKENS, WIDTH // HEADS)]),
        ("torch_encoder", "encoder.layers.0.neurons", [(5, NEURONS, TOKENS, 1)]),
        ("convolutional", "blocks.0.channels", [(5, 12, 64, 1)]),
        ("convolutional", "channels", [(5, 8, 64, 1), (5, 8, 64, 1), (5, 8, 1, 16)]),
        ("densely_connected", "channels_2", [(5, 4, 64, 1)]),
        ("densely_connected", "channels_3", [(5, 5, 1, 1)]),
    ],
)
def test_values_come_by_example_unit_place_and_width(
    model: str, site: str, wanted: list[tuple[int, ...]]
) -> None:
    evidence = Evidence(sites(model), [inputs(model, 5, 1)])
    (found,) = unit_values(evidence, evidence.sites.get(site))
    assert [tuple(each.shape) for each in found] == wanted


def test_values_of_an_example_do_not_depend_on_the_others() -> None:
    whole = inputs("torch_encoder", 5, 1)
    for name in ("encoder.layers.0.heads", "encoder.layers.1.neurons"):
        found = [
            next(unit_values(evidence, evidence.sites.get(name)))[0]
            for evidence in (
                Evidence(sites("torch_encoder"), [batch])
                for batch in (whole, tuple(x[3:] for x in whole))
            )
        ]
        torch.testing.assert_close(found[0][3:], found[1])


@pytest.mark.parametrize(
    ("model", "site"),
    [("fused", "layers.0.heads"), ("convolutional", "channels"), ("densely_connected", "channels")],
)
def test_moments_are_those_of_what_each_unit_adds_to_its_readers(model: str, site: str) -> None:
    evidence = Evidence(sites(model), [inputs(model, 3, seed) for seed in (1, 2)])
    cut = evidence.sites.get(site)
    for matrix in matrices(evidence, cut):
        source = matrix.reader.source
        parts = [
            torch.cat([_alone(matrix, x, unit) for (x,) in evidence.values([source])])
            for unit in range(cut.units)
        ]
        rows = torch.stack(parts).flatten(1).double()
        torch.testing.assert_close(matrix.moments(cut.units), rows @ rows.T, rtol=1e-4, atol=1e-3)


def _alone(matrix: Matrix, x: torch.Tensor, unit: int) -> torch.Tensor:
    """What the reader computes from one unit alone, without its bias."""
    node = matrix.reader.node
    weight = matrix.weight * (matrix.reader.unit_of == unit)
    shaped = weight.view_as(node.args[1].meta["val"])
    return node.target(x, shaped, None, *node.args[3:])


def test_only_a_map_with_one_weight_is_a_matrix() -> None:
    evidence, site = about(convolutions(), 3, 2, 6, 6)
    assert read_by_matrices(evidence, site)
    grouped = convolutions()
    grouped.second = nn.Conv2d(CHANNELS, 16, 3, groups=2)
    grouped.head = nn.Linear(16, 5)
    evidence, _ = about(grouped, 3, 2, 6, 6)
    assert not read_by_matrices(evidence, evidence.sites.get("channels"))


def test_the_most_alike_pair_is_parted_first_and_the_more_common_one_goes() -> None:
    places = torch.tensor([[0.0], [0.1], [5.0], [9.0], [9.3]])
    order = redundancy_order(-torch.cdist(places, places))
    assert order[:2] == [1, 3]  # each the nearer one to all the others
    assert sorted(order) == list(range(5))


def test_greedy_removal_keeps_the_sum_of_what_is_gone_small() -> None:
    parts = torch.tensor([[3.0, 0.0], [-3.1, 0.0], [1.0, 0.0], [0.0, 2.0]]).double()
    order = removal_order(parts @ parts.T)
    assert order[0] == 2  # the smallest alone
    assert order[1] != 0  # 1 + 3 would add up; 0 and 1 cancel later
    gone = torch.zeros(2).double()
    for unit in order:
        rest = [u for u in order[order.index(unit) :]]
        best = min(rest, key=lambda u: float((gone + parts[u]).square().sum()))
        assert unit == best
        gone += parts[unit]


def test_scores_are_the_steps_of_removal() -> None:
    assert steps([2, 0, 1]).tolist() == [1, 2, 0]
