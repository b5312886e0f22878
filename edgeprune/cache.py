"""Where edgeprune keeps what is costly to make again: measured hosts, tables, data sets."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir


def cache_dir() -> Path:
    """The cache folder: ``$EDGEPRUNE_CACHE``, or the platform's own place. It need not exist."""
    chosen = os.environ.get("EDGEPRUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path(user_cache_dir("edgeprune"))
