"""``python -m edgeprune``."""

from edgeprune.cli import main

main()
