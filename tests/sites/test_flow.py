"""Propagation: what holds whatever the operators are."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from models import noise
from torch import Tensor, nn

from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites
from edgeprune.sites.flow import RULES
from edgeprune.surgery import apply, masked
from edgeprune.surgery.gates import readers

HIDDEN = 6


class Around(nn.Module):
    """Tokens [batch, 4, 8] to hidden units, through something, and to the output."""

    def __init__(self, through: Callable[[Tensor], Tensor], after: int = HIDDEN) -> None:
        super().__init__()
        self.up, self.down, self.through = nn.Linear(8, HIDDEN), nn.Linear(after, 3), through

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.through(self.up(x).relu()))


def found_around(through: Callable[[Tensor], Tensor], after: int = HIDDEN) -> Sites:
    torch.manual_seed(0)
    return find_sites(capture(Around(through, after).eval(), (noise(2, 4, 8, seed=0),)))


def gram(x: Tensor) -> Tensor:
    return (x.transpose(-1, -2) @ x).flatten(-2)


@pytest.mark.parametrize(
    "through",
    [
        gram,
        lambda x: gram(x.reshape(-1, 2, HIDDEN)).unflatten(0, (-1, 2)),
        lambda x: gram(torch.cat([torch.ones(1, 1, HIDDEN).repeat(x.shape[0], 1, 1), x], 1)),
    ],
)
def test_a_gram_matrix_freezes_its_units_however_the_batch_is_written(
    through: Callable[[Tensor], Tensor],
) -> None:
    found = found_around(through, HIDDEN**2)
    assert "has it in two dimensions" in (found.get("neurons").why_not or "")


def test_a_form_that_a_rule_does_not_know_is_frozen_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = found_around(lambda x: torch.frexp(x).mantissa)
    assert "no rule for frexp" in (found.get("up.neurons").why_not or "")
    assert "the rule does not know this form" in caplog.text


def test_a_rule_that_gives_another_shape_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = torch.ops.aten.erf.default
    monkeypatch.setitem(RULES, wrong, lambda flow, node: flow.of(node.args[0])[1:])
    found = found_around(torch.erf)
    assert "no rule for erf" in (found.get("up.neurons").why_not or "")


def test_what_the_batch_bounds_stays_bound_by_it() -> None:
    table = nn.Parameter(noise(70000, 1, seed=1))
    found = found_around(lambda x: x * table[: x.shape[0]].sum())
    cut = Plan(found.program.fingerprint, {"neurons": (0, 2, 5)})
    given = noise(5, 4, 8, seed=2)
    got, wanted = apply(found.program, cut, found)(given), masked(found, cut)(given)
    torch.testing.assert_close(got, wanted)


def test_a_unit_is_read_where_it_is_summed_over_and_nowhere_else() -> None:
    found = found_around(lambda x: x.sigmoid() + x.mean(1, keepdim=True))
    ((reader, source),) = readers(found, found.atoms["neurons"])
    assert reader.args[0] is source
    assert reader.args[1].target == "down.weight"
