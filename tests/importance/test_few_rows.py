"""A refit to fewer rows than columns is not believed."""

from __future__ import annotations

from convnets import Keyword, captured, pictures

from edgeprune.importance import Evidence, measure_damage
from edgeprune.sites import find_sites


def test_what_a_few_pictures_fit_by_heart_is_not_free() -> None:
    sites = find_sites(captured(Keyword))
    assert sites.get("channels_2").units == 64  # read after pooling: one row per picture
    damages = []
    for count in (16, 256):
        evidence = Evidence(sites, [(pictures(count),)])
        order = {"channels_2": tuple(range(64))}
        damages.append(measure_damage(evidence, order, {"channels_2": [32]}, []))
    few, many = (damage.of_width("channels_2", 32) for damage in damages)
    assert few > many
