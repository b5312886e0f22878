"""Sites: where a program can be cut, found by propagating axes through its graph."""

from edgeprune.sites.find import Sites, find_sites
from edgeprune.sites.site import Site

__all__ = ["Site", "Sites", "find_sites"]
