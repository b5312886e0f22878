"""Audit: what a plan is worth, told apart from what any plan of its cost would do."""

from edgeprune.audit.audit import Audit, audit
from edgeprune.audit.equality import Equality
from edgeprune.audit.ranks import OracleRank, SublayerRanks
from edgeprune.audit.twins import random_twin, worst_twin

__all__ = [
    "Audit",
    "Equality",
    "OracleRank",
    "SublayerRanks",
    "audit",
    "random_twin",
    "worst_twin",
]
