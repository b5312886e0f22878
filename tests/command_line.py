"""What the tests of the command share: a runner, and a task that builds in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from edgeprune.cli import app

# Tests run in a checkout too, where the package is on the path but not installed.
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

TINY_TASK = """
import torch
from torch import nn
from edgeprune.task import Task


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)
        )

    def forward(self, x):
        parts = (self.query, self.key, self.value)
        q, k, v = (part(self.norm(x)).unflatten(-1, (2, 8)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Tiny(Task):
    score_name = "agreement"
    licence = "none needed"

    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(Block(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()

    def example_inputs(self):
        return (torch.ones(2, 8, 16),)

    def calibration(self):
        rng = torch.Generator().manual_seed(1)
        return [(torch.randn(16, 8, 16, generator=rng),) for _ in range(2)]

    def evaluate(self, predict):
        (x,) = self.calibration()[1]
        with torch.no_grad():
            return (predict((x,)).argmax(-1) == self.model()(x).argmax(-1)).float().numpy()
"""


def tiny_task(folder: Path) -> str:
    """The task's file, as ``--task`` takes it."""
    path = folder / "tiny.py"
    path.write_text(TINY_TASK)
    return str(path)


class Ended:
    """How a command ended."""

    def __init__(self, exit_code: int, stdout: str, stderr: str) -> None:
        self.exit_code, self.stdout, self.stderr = exit_code, stdout, stderr

    @property
    def message(self) -> str:
        """The one line on standard error; fails if there are more, or none."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, self.stderr
        return lines[0]


def edgeprune(*words: object) -> Ended:
    """Run the command in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="edgeprune")
    return Ended(result.exit_code, result.stdout, result.stderr)


def start(*words: object, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgeprune", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=prepare,
    )


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, also hidden and temporary ones."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
