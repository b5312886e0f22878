"""Cost: what pieces of a model take on a device, measured or estimated, and what a plan will."""

from edgeprune.cost.measure import measure_costs
from edgeprune.cost.plans import random_plan
from edgeprune.cost.roofline import estimate_costs
from edgeprune.cost.table import CostTable, Prediction
from edgeprune.cost.vendor import vendor_costs

__all__ = [
    "CostTable",
    "Prediction",
    "estimate_costs",
    "measure_costs",
    "random_plan",
    "vendor_costs",
]
