"""How each operator relates its dimensions: one family a file, each rule registered by itself."""

from edgeprune.sites.rules import (
    attention,
    convolution,
    linear,
    pointwise,
    reduction,
    shape,
    space,
)

__all__ = ["attention", "convolution", "linear", "pointwise", "reduction", "shape", "space"]
