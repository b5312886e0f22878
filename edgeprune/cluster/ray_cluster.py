"""A Ray cluster: work as tasks on any node, a device as a resource of the host it hangs on."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import ray
import torch
from ray.exceptions import RayError

from edgeprune.cluster.ray_device import RayDevice
from edgeprune.cluster.ray_tasks import RayTasks, offers
from edgeprune.devices.device import Device, connect
from edgeprune.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_LIMIT_S = 5.0


class RayCluster:
    """The cluster that this machine is a node of.

    Args:
        address: ``host:port`` of its head node, or ``auto`` for the one that runs here.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.tasks = RayTasks()

    def __enter__(self) -> RayCluster:
        """Connect.

        Raises:
            InputError: there is no such cluster, or this machine is no node of it.
        """
        _check_answers(self.address)
        try:
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"--cluster {self.address}: cannot be joined ({str(error).splitlines()[0]}). Make "
                "this machine a node of it: ray start --address=HEAD:PORT"
            ) from error
        return self

    def __exit__(self, *reason: object) -> None:
        self.tasks.cancel()
        ray.shutdown()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """See ``Cluster.map``; ``function`` and ``items`` are pickled."""
        # A thread each, where every node that computes has so many.
        cpus = min(torch.get_num_threads(), *map(int, offers("CPU")))
        put = self.tasks.put(function)
        refs = [self.tasks.submit(put, item, num_cpus=cpus) for item in items]
        for ref in refs:
            yield self.tasks.result(ref, "CPU")

    def device(self, name: str, threads: int = 1) -> Device:
        """See ``Cluster.device``; ``local`` is this machine, for which nobody queues."""
        return connect(name, threads) if name == "local" else RayDevice(self.tasks, name, threads)


def _check_answers(address: str) -> None:
    """Ray itself tries a wrong address for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise InputError(f"--cluster: got {address!r}, wanted host:port, or auto")
    try:
        socket.create_connection((host, int(port)), CONNECT_LIMIT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--cluster {address}: nobody answers ({error}). On the machine {host}, start the "
            f"head node: ray start --head --port={port}"
        ) from error
