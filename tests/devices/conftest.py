"""What the device tests share: a model, and files of it for both runtimes."""

from __future__ import annotations

import pytest
import torch
from small_models import WIDTH
from torch import nn

from edgeprune.devices import Workload
from edgeprune.lower import Lowering, lower_graph


@pytest.fixture(scope="session")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU()).eval()


@pytest.fixture(scope="session")
def files(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workload]:
    """The model in both runtimes' files, without anything of ours."""
    folder, inputs = tmp_path_factory.mktemp("lowered"), (torch.randn(1, WIDTH),)
    found = {}
    for runtime in ("executorch", "litert"):
        how = Lowering(runtime=runtime, delegate="off")
        path = folder / f"model{how.suffix}"
        path.write_bytes(lower_graph(model, inputs, how).data)
        found[runtime] = Workload(runtime, path, inputs)
    return found
