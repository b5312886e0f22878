"""The Cluster interface, and the one that is no cluster: this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from edgeprune.devices.device import Device, connect
from edgeprune.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Cluster(Protocol):
    """Work without shared state, wherever it runs; the results are the same."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """``function`` of each item, in their order, as they come."""
        ...

    def device(self, name: str, threads: int = 1) -> Device:
        """A device to open in a ``with`` block; see ``edgeprune.devices.connect``."""
        ...


class InProcess:
    """One item after the other; devices are those of this machine."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """See ``Cluster.map``."""
        return map(function, items)

    def device(self, name: str, threads: int = 1) -> Device:
        """See ``Cluster.device``."""
        return connect(name, threads)


IN_PROCESS = InProcess()


@contextmanager
def open_cluster(address: str | None) -> Iterator[Cluster]:
    """The Ray cluster at ``address`` (``host:port``); this process if it is None.

    Work that is still going on when the ``with`` block is left, as by Ctrl-C, is cancelled.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    if address is None:
        yield IN_PROCESS
        return
    try:
        from edgeprune.cluster.ray_cluster import RayCluster
    except ModuleNotFoundError as error:
        raise InputError(
            f"--cluster {address}: needs the package {error.name!r}. "
            "Install it here and on every node: pip install 'edgeprune[cluster]'"
        ) from error
    with RayCluster(address) as cluster:
        yield cluster
