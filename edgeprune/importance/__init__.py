"""Importance: which units of a site matter (one criterion a file), and what cutting them costs."""

from edgeprune.importance import (
    attn_confidence,
    l1,
    obs,
    output_damage,
    random,
    taylor_fo,
)
from edgeprune.importance.criterion import CRITERIA, DEFAULT, rank_units
from edgeprune.importance.damage import Damage, measure_damage
from edgeprune.importance.evidence import Evidence

__all__ = [
    "CRITERIA",
    "DEFAULT",
    "Damage",
    "Evidence",
    "attn_confidence",
    "l1",
    "measure_damage",
    "obs",
    "output_damage",
    "random",
    "rank_units",
    "taylor_fo",
]
