"""Calls as Ray tasks: sent to a node, started again where it dies, cancelled when we leave."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from edgeprune import console
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.task import TASK_FILE_MODULE
from edgeprune.versions import versions

# How often a call is started again that was lost with its node.
RETRIES = 3
# How often a wait looks whether there still is a node that could do the work.
LOOK_S = 5.0
# What cancelled calls get to leave a device as it was.
LEAVE_LIMIT_S = 15.0


@dataclass(frozen=True)
class Client:
    """What a node must share with the client for the same results.

    Attributes:
        path: where Python looks for modules: a user's files import their neighbours.
        threads: of torch, whose sums depend on them in the last bits.
    """

    path: tuple[str, ...]
    versions: dict[str, str]
    threads: int

    @classmethod
    def here(cls) -> Client:
        """This process."""
        return cls(tuple(sys.path), _versions(), torch.get_num_threads())

    def prepare(self) -> None:
        """Make this process like the client's.

        Raises:
            InputError: other versions are installed here.
        """
        here = _versions()
        for package, wanted in self.versions.items():
            if (found := here.get(package, "none")) != wanted:
                raise InputError(
                    f"cluster: node {socket.gethostname()}: {package}: got {found}, wanted "
                    f"{wanted} as on the client. Install the same packages on every node."
                )
        sys.path += [folder for folder in self.path if folder not in sys.path]
        torch.set_num_threads(self.threads)
        console.configure(quiet=True)


class RayTasks:
    """The calls of one client."""

    def __init__(self) -> None:
        self._pending: set[ray.ObjectRef] = set()

    def put(self, function: Callable[..., Any]) -> ray.ObjectRef:
        """Hand a function to the cluster, once for all its calls."""
        for name, module in list(sys.modules.items()):
            if name.startswith(TASK_FILE_MODULE):  # no node could import it by that name
                ray.cloudpickle.register_pickle_by_value(module)
        return ray.put(function)

    def submit(self, function: ray.ObjectRef, item: object, **needs: Any) -> ray.ObjectRef:
        """Start ``function(item)`` on a node that has what it needs."""
        task = ray.remote(_call).options(max_retries=RETRIES, **needs)
        ref = task.remote(Client.here(), [function], item)
        self._pending.add(ref)
        return ref

    def result(self, ref: ray.ObjectRef, need: str) -> Any:
        """What a call gave; waits for it.

        Raises:
            EdgepruneError: the call did; or no node is left that offers what it needs.
        """
        while not ray.wait([ref], timeout=LOOK_S)[0]:
            offers(need)
        self._pending.discard(ref)
        try:
            return ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, EdgepruneError):
                raise error.cause from None
            raise
        except RayError as error:
            raise EdgepruneError(
                f"cluster: a call was lost with its process {1 + RETRIES} times "
                f"({type(error).__name__}). Have the nodes too little memory?",
                detail=str(error),
            ) from error

    def cancel(self) -> None:
        """Stop what is going on."""
        pending = list(self._pending)
        for ref in pending:
            ray.cancel(ref)
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=LEAVE_LIMIT_S)


def offers(need: str) -> list[float]:
    """How much of a resource living nodes offer, each that does.

    Raises:
        InputError: none does.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = [resources[need] for resources in nodes if resources.get(need)]
    if not found:
        flags = "--num-cpus=2" if need == "CPU" else f"--resources='{{\"{need}\": 1}}'"
        raise InputError(
            f"cluster: none of its {len(nodes)} nodes offers {need}. "
            f"Start one that does: ray start --address=... {flags}"
        )
    return found


def _call(client: Client, function: list[ray.ObjectRef], item: Any) -> Any:
    """What a task does on its node; in a list, a function is not unpickled before its turn."""
    client.prepare()
    return _function(function[0])(item)


@lru_cache(maxsize=1)
def _function(put: ray.ObjectRef) -> Any:
    """Unpickled once for all calls in this process: what it has worked out stays with it."""
    return ray.get(put)


@cache
def _versions() -> dict[str, str]:
    return versions()
