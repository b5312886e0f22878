"""What is special about families of pictures."""

from __future__ import annotations

from families import FAMILIES


def test_a_block_with_a_projected_shortcut_is_no_identity_and_stays() -> None:
    found = FAMILIES["resnet-basic"].sites()
    removable = [site.name for site in found.cuttable if site.axis == "sublayer"]
    assert removable == [f"body.resnet.encoder.stages.{stage}.layers.1.block" for stage in (0, 1)]
