"""edgeprune: prune a network for the device it must run on, and prove it there."""

__version__ = "0.1.0"
