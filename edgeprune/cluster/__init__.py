"""Where the work of a build runs: in this process, or on a Ray cluster."""

from edgeprune.cluster.cluster import IN_PROCESS, Cluster, InProcess, open_cluster

__all__ = ["IN_PROCESS", "Cluster", "InProcess", "open_cluster"]
