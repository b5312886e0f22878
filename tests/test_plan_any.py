"""Plans of networks without residuals, or whose widths span several sub-layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from convnets import Keyword, Pictures, StagedPictures, captured, convnet
from torch import Tensor, nn

from edgeprune.build import plan
from edgeprune.candidates import SearchResult
from edgeprune.cost import estimate_costs
from edgeprune.errors import InputError
from edgeprune.formulate import AXES, choices_of
from edgeprune.lower import Lowering
from edgeprune.profile import Multiples, load_profile
from edgeprune.program import capture
from edgeprune.sites import Sites, find_sites
from edgeprune.steps import sites_stage
from edgeprune.surgery import apply

ANY = Multiples(heads=1, ffn=1, tokens=1)


def planned(task: Pictures, folder: Path) -> tuple[Sites, SearchResult]:
    asked = {"profile": "pixel8", "budget": "latency=60%", "precision": "fp32"}
    found = plan(task, out=folder, recover_minutes=0.0, **asked)
    return find_sites(captured(task.kind)), found


@pytest.mark.parametrize(
    "task",
    [Pictures(), pytest.param(StagedPictures(), marks=pytest.mark.nightly)],
    ids=["DS-CNN", "ResNet"],
)
def test_a_budget_gives_a_plan_of_spanning_widths_that_costs_as_promised(
    task: Pictures, tmp_path: Path
) -> None:
    sites, found = planned(task, tmp_path)
    spanning = {name for part in sites.parts for name in part.spanning}
    cut = {name: len(units) for name, units in found.plan.kept.items() if name in spanning}
    assert cut
    assert all(kept % 4 == 0 and kept < sites.get(name).units for name, kept in cut.items())
    profile, lowering = load_profile("pixel8"), Lowering("fp32")
    dense = estimate_costs(sites, profile, lowering).dense_ms
    slim = find_sites(apply(sites.program, found.plan, sites))
    assert 0.5 <= estimate_costs(slim, profile, lowering).dense_ms / dense <= 0.61
    certificate = found.chosen.certificate
    assert certificate.bound_damage <= found.chosen.damage
    assert certificate.exact or "heuristic" in certificate.note


def test_spanning_widths_are_offered_in_multiples_and_only_where_width_is_open() -> None:
    sites = find_sites(captured(Keyword))
    options = {c.name: [o.units for o in c.options] for c in choices_of(sites, ANY)}
    assert options == {
        "channels": [8, 16, 24, 32],
        "blocks.channels": [8, 16, 24, 32],
        "channels_2": [8, 16, 24, 32, 40, 48, 56, 64],
    }
    closed = tuple(axis for axis in AXES if axis != "width")
    assert choices_of(sites, ANY, closed) == ()


class Frozen(nn.Module):
    """All of its widths are inputs or outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


def test_a_model_without_a_cut_is_refused_with_the_reasons(tmp_path: Path) -> None:
    program = capture(Frozen().eval(), (torch.zeros(2, 4),))
    with pytest.raises(InputError, match="nothing in this model can be cut.*output of the model"):
        sites_stage(program, tmp_path)


def test_networks_without_residuals_pass_the_stage_of_sites(tmp_path: Path) -> None:
    program = capture(convnet(Keyword), Pictures().example_inputs())
    assert not sites_stage(program, tmp_path).residuals
