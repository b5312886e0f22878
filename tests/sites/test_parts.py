"""The program as sub-layers and chunks, and the widths that span them."""

from __future__ import annotations

import pytest
from convnets import Keyword, Staged, captured
from models import sites as known_sites

from edgeprune.sites import Sites, find_sites
from edgeprune.sites.parts import spanning_sites, width_sites


@pytest.fixture(scope="module")
def staged() -> Sites:
    return find_sites(captured(Staged))


def test_a_transformer_is_made_of_its_sub_layers_alone() -> None:
    for name in ("bert", "vit", "llama"):
        found = known_sites(name)
        assert [part.name for part in found.parts] == [each.name for each in found.residuals]
        assert not any(part.spanning for part in found.parts)


def test_without_residuals_every_convolution_makes_a_chunk_with_what_follows() -> None:
    found = find_sites(captured(Keyword))
    assert [(part.name, part.spanning) for part in found.parts] == [
        ("stem", ("channels",)),
        ("blocks.0.depthwise", ("channels",)),
        ("blocks.0.pointwise", ("channels", "blocks.channels")),
        ("blocks.1.depthwise", ("blocks.channels",)),
        ("blocks.1.pointwise", ("blocks.channels", "channels_2")),
        ("head", ("channels_2",)),
    ]
    assert "relu" in found.parts[2].nodes[-1].name


def test_channels_of_a_stage_span_it_and_those_inside_a_sub_layer_do_not(staged: Sites) -> None:
    own = {site.name for each in staged.residuals for site in width_sites(staged, each)}
    spanning = {site.name for site in spanning_sites(staged)}
    assert own == {"blocks.0.channels", "blocks.2.channels"}
    assert len(spanning) == 3  # of both stages, and inside of the block between them
    assert own | spanning == {site.name for site in staged.cuttable if site.kind == "width"}
    for residual, stream in zip(staged.residuals, staged.parts[:2], strict=True):
        assert residual.name == stream.name and len(stream.spanning) == 1


@pytest.mark.parametrize("kind", [Keyword, Staged])
def test_no_node_is_counted_twice(kind: type) -> None:
    found = find_sites(captured(kind))
    nodes = [node for part in found.parts for node in part.nodes]
    assert len(nodes) == len(set(nodes))
