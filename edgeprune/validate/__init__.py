"""Validation: the lowered file against the program it came from, the budget and the dense model."""

from edgeprune.validate.check import Check
from edgeprune.validate.numerics import Numerics, check_numerics
from edgeprune.validate.old_runtime import with_tflite_runtime
from edgeprune.validate.prove import Reference, validate
from edgeprune.validate.scores import Scored, Scores, take_score
from edgeprune.validate.timing import Timing, bound_checks, check_latency
from edgeprune.validate.verdict import Predicted, Status, Verdict

__all__ = [
    "Check",
    "Numerics",
    "Predicted",
    "Reference",
    "Scored",
    "Scores",
    "Status",
    "Timing",
    "Verdict",
    "bound_checks",
    "check_latency",
    "check_numerics",
    "take_score",
    "validate",
    "with_tflite_runtime",
]
