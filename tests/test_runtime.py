"""Lowered files run in Python, with our library where they need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune import runtime
from edgeprune.errors import InputError
from edgeprune.lower import RUNTIMES, Lowering, lower_graph


class Normed(nn.Module):
    """A linear layer and a norm that our delegate runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.layer(x))


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_file_computes_what_its_module_does_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    module, x = Normed().eval(), torch.randn(1, 5, 8)
    lowering = Lowering(runtime=name)
    lowered = lower_graph(module, (x,), lowering)
    assert any(row.delegate == "edgeprune" for row in lowered.delegation)
    path = tmp_path / f"model{lowering.suffix}"
    path.write_bytes(lowered.data)
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import torch\n"
        "from edgeprune import runtime\n"
        f"model = runtime.load({str(path)!r})\n"
        f"(y,) = model(torch.load({str(tmp_path / 'x.pt')!r}))\n"
        f"torch.save(y, {str(tmp_path / 'y.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    got = torch.load(tmp_path / "y.pt")
    torch.testing.assert_close(got, module(x), atol=1e-5, rtol=1e-5)


def test_what_is_no_file_of_a_runtime_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        runtime.load(tmp_path / "model.pte")
    (tmp_path / "model.pte").write_bytes(b"cut short")
    with pytest.raises(InputError, match="the runtime could not load it"):
        runtime.load(tmp_path / "model.pte")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="wanted .*pte or .*tflite"):
        runtime.load(tmp_path / "model.onnx")
