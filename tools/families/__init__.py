"""The families that people deploy: one kind a file, each model registered by itself."""

from families import convolutional, encoders, others, vision_transformers
from families.family import FAMILIES, Family

__all__ = [
    "FAMILIES",
    "Family",
    "convolutional",
    "encoders",
    "others",
    "vision_transformers",
]
