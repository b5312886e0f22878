"""Cost: what pieces of a model take on a device, measured or estimated, and what a plan will."""

from edgeprune.cost.measure import measure_costs
from edgeprune.cost.plans import random_plan
from edgeprune.cost.rescale import adapt, rescale_costs
from edgeprune.cost.roofline import estimate_costs
from edgeprune.cost.table import CostTable, Prediction
from edgeprune.cost.vendor import vendor_costs

__all__ = [
    "CostTable",
    "Prediction",
    "adapt",
    "estimate_costs",
    "measure_costs",
    "random_plan",
    "rescale_costs",
    "vendor_costs",
]
