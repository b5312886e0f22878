"""The encoder dense, with fewer tokens and with fewer layers, as programs and as files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path

import pytest
from signs import Signs

from edgeprune.devices import Device, connect
from edgeprune.lower import Artifact, Lowering, lower
from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.sites import find_sites
from edgeprune.surgery import apply
from edgeprune.validate import Reference, Timing, check_latency


@pytest.fixture(scope="session")
def task() -> Signs:
    return Signs()


@pytest.fixture(scope="session")
def dense(task: Signs) -> Program:
    return capture(task.model(), task.example_inputs())


@pytest.fixture(scope="session")
def slim(dense: Program) -> Program:
    """Fewer tokens after each layer's attention."""
    names = [stream.name for stream in find_sites(dense).streams]
    return apply(dense, Plan(dense.fingerprint, tokens=dict(zip(names, (12, 8), strict=True))))


@pytest.fixture(scope="session")
def short(dense: Program) -> Program:
    """One layer of two."""
    layer = find_sites(dense).layers[1].name
    return apply(dense, Plan(dense.fingerprint, {layer: ()}))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lowered")


@pytest.fixture(scope="session")
def dense_file(dense: Program, folder: Path) -> Artifact:
    return lower(dense, folder / "dense.pte", Lowering())


@pytest.fixture(scope="session")
def slim_file(slim: Program, folder: Path) -> Artifact:
    return lower(slim, folder / "slim.pte", Lowering())


@pytest.fixture(scope="session")
def short_file(short: Program, folder: Path) -> Artifact:
    return lower(short, folder / "short.pte", Lowering())


@pytest.fixture(scope="session")
def reference(dense: Program, dense_file: Artifact) -> Reference:
    return Reference(dense, dense_file)


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    """This machine; a file that it once loaded stays so, for each worker takes seconds to start."""
    with connect("local") as opened, ExitStack() as held:
        load = cache(lambda *file: held.enter_context(predictor(*file)))
        predictor = opened.predictor
        opened.predictor = lambda *file: nullcontext(load(*file))  # type: ignore[method-assign]
        yield opened


@pytest.fixture(scope="session")
def timing(short_file: Artifact, dense_file: Artifact, dense: Program, device: Device) -> Timing:
    return check_latency(short_file, device, dense_file, dense.example_inputs, memory=True)
