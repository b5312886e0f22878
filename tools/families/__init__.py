"""The families that people deploy: one kind a file, each model registered by itself."""

from families import (
    convolutional,
    decoders,
    encoder_decoders,
    encoders,
    others,
    vision_transformers,
)
from families.family import FAMILIES, Family

__all__ = [
    "FAMILIES",
    "Family",
    "convolutional",
    "decoders",
    "encoder_decoders",
    "encoders",
    "others",
    "vision_transformers",
]
