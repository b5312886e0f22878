"""A device that hangs on some host of a Ray cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any, TypeAlias

import ray

from edgeprune.cluster.ray_tasks import LEAVE_LIMIT_S, RETRIES, Client, RayTasks, offers
from edgeprune.devices import protocol
from edgeprune.devices.device import Device, OperatorTime, Workload, opener
from edgeprune.devices.measurement import DeviceState, Measurement
from edgeprune.errors import InputError
from edgeprune.task import Batch, Predict

Sent: TypeAlias = tuple[Workload, bytes]
"""A workload, and its file's bytes."""


class RayDevice(Device):
    """Each call is a task that holds the device's one unit, and opens the device for itself.

    So the calls of several clients queue, and a client that dies keeps nobody waiting.

    Args:
        name: of the device, as ``connect`` takes it on its host, and of the resource.
    """

    def __init__(self, tasks: RayTasks, name: str, threads: int) -> None:
        self.name = self._resource = name
        self._tasks = tasks
        self._open = opener(name, threads)
        self._needs = {"num_cpus": 0, "resources": {name: 1}}

    def __enter__(self) -> RayDevice:
        """See whether it is there.

        Raises:
            InputError: it is not one unit that the cluster's nodes offer.
        """
        units = offers(self._resource)
        if sum(units) != 1:
            raise InputError(
                f"cluster: {len(units)} nodes offer {sum(units):g} units of {self._resource}, "
                "wanted one of one: two would be measured at once. Start only the host that it "
                f"hangs on with --resources='{{\"{self._resource}\": 1}}'."
            )
        self._opened = self._tasks.put(partial(_on_device, self._open))
        self.name, self.title = self._ask(attrgetter("name", "title"))
        return self

    def __exit__(self, *reason: object) -> None:
        """Nothing is held between calls."""

    def measure_in_turns(
        self,
        workloads: Sequence[Workload],
        rounds: int = protocol.RUNS,
        memory: bool = False,
        seconds: float = protocol.LEAST_S,
    ) -> dict[str, Measurement]:
        """See ``Device.measure_in_turns``."""
        sent = [_sent(load) for load in workloads]
        found: dict[str, Measurement] = self._ask(partial(_measure, sent, rounds, memory, seconds))
        return found

    @contextmanager
    def predictor(self, path: Path, signature: str = "") -> Iterator[Predict]:
        """See ``Device.predictor``; holds the device for the ``with`` block."""
        sent = _sent(Workload("predict", path, (), signature))
        opened = self._tasks.put(self._open)
        actor: Any = ray.remote(_Predictor)
        kept = actor.options(max_restarts=RETRIES, max_task_retries=RETRIES, **self._needs)
        predictor = kept.remote(Client.here(), [opened], sent)

        def predict(batch: Batch) -> Any:
            return self._tasks.result(predictor.run.remote(batch), self._resource)

        try:
            self._tasks.result(predictor.load.remote(), self._resource)
            yield predict
        finally:
            ray.wait([predictor.close.remote()], timeout=LEAVE_LIMIT_S)
            ray.kill(predictor)

    def profile(
        self, workloads: Sequence[Workload], runs: int = 10
    ) -> dict[str, tuple[OperatorTime, ...]]:
        """See ``Device.profile``."""
        sent = [_sent(load) for load in workloads]
        found: dict[str, tuple[OperatorTime, ...]] = self._ask(partial(_profile, sent, runs))
        return found

    def state(self) -> DeviceState:
        """See ``Device.state``."""
        found: DeviceState = self._ask(methodcaller("state"))
        return found

    def _ask(self, question: Callable[[Device], Any]) -> Any:
        ref = self._tasks.submit(self._opened, question, **self._needs)
        return self._tasks.result(ref, self._resource)


def _on_device(opened: Callable[[], Device], question: Callable[[Device], Any]) -> Any:
    with opened() as device:
        return question(device)


def _measure(
    sent: Sequence[Sent], rounds: int, memory: bool, seconds: float, device: Device
) -> dict[str, Measurement]:
    with _received(*sent) as workloads:
        return device.measure_in_turns(workloads, rounds, memory, seconds)


def _profile(
    sent: Sequence[Sent], runs: int, device: Device
) -> dict[str, tuple[OperatorTime, ...]]:
    with _received(*sent) as workloads:
        return device.profile(workloads, runs)


class _Predictor:
    """On the device's host: a file that is loaded when it is first asked, also after a restart."""

    def __init__(self, client: Client, opened: list[ray.ObjectRef], sent: Sent) -> None:
        self._client, self._opened, self._sent = client, opened, sent
        self._held = ExitStack()

    @cached_property
    def _predict(self) -> Predict:
        self._client.prepare()
        device = self._held.enter_context(ray.get(self._opened[0])())
        (workload,) = self._held.enter_context(_received(self._sent))
        predictor = device.predictor(workload.path, workload.signature)
        return self._held.enter_context(predictor)

    def load(self) -> None:
        _ = self._predict

    def run(self, batch: Batch) -> Any:
        return self._predict(batch)

    def close(self) -> None:
        self._held.close()


def _sent(workload: Workload) -> Sent:
    return workload, workload.path.read_bytes()


@contextmanager
def _received(*sent: Sent) -> Iterator[list[Workload]]:
    """The workloads with their files in a folder here."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        workloads = []
        for number, (workload, data) in enumerate(sent):
            path = Path(folder, str(number), workload.path.name)
            path.parent.mkdir()
            path.write_bytes(data)
            workloads.append(replace(workload, path=path))
        yield workloads
