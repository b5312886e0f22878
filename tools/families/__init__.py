"""The families that people deploy: one kind a file, each model registered by itself."""

from families import decoders, encoder_decoders, encoders
from families.family import FAMILIES, Family

__all__ = ["FAMILIES", "Family", "decoders", "encoder_decoders", "encoders"]
