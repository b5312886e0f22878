"""The stages of a build; every result is kept in the build folder."""

from edgeprune.steps.planning import (
    Planned,
    capture_stage,
    cost_stage,
    dense_stage,
    example_of,
    profile_stage,
    score_stage,
    scored_examples,
    sites_stage,
    solve_stage,
)
from edgeprune.steps.proving import (
    lower_stage,
    operators_of,
    recover_stage,
    solve_again_stage,
    timing_stage,
    validate_stage,
)

__all__ = [
    "Planned",
    "capture_stage",
    "cost_stage",
    "dense_stage",
    "example_of",
    "lower_stage",
    "operators_of",
    "profile_stage",
    "recover_stage",
    "score_stage",
    "scored_examples",
    "sites_stage",
    "solve_again_stage",
    "solve_stage",
    "timing_stage",
    "validate_stage",
]
