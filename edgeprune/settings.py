"""What a build is told, once flags, file and defaults have been put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.importance import DEFAULT
from edgeprune.lower.lowering import CPU, Delegate, Precision

# 40 steps bring a uniform plan of MiniLM from 72.6 to 79.2 points on the validation split, 120 to
# 79.8; the joint one from 80.2 to 82.3 and 82.6.
TRIAL_STEPS = 48
# They take 40 s for MiniLM on 2 cores; a large model gets fewer.
TRIAL_SHARE = 1 / 8


@dataclass(frozen=True)
class Settings:
    """What a build is told; the same words as the flags and the keys of ``edgeprune.toml``.

    Attributes:
        budget: None takes the profile's.
        precision, runtime, delegate, accelerator: as in ``Lowering``; None takes the profile's.
        device: "local", or None: the profile's device is not at hand.
        table: a cost table's file, or its name of `edgeprune tables`; None measures one.
        threads: of the runtime on the device.
        cluster: ``host:port`` of the Ray cluster that does the work; None: this process.
        recover_minutes: of distillation at most; 0 leaves the least-squares refit alone.
        recover_steps: of distillation, exactly, however long they take: the same steps give the
            same file. None takes as many as fit into the minutes.
    """

    profile: str
    budget: str | None = None
    out: Path = Path("build")
    precision: Precision | None = None
    runtime: str | None = None
    delegate: Delegate | None = None
    accelerator: str | None = None
    device: str | None = None
    table: str | None = None
    threads: int = 1
    cluster: str | None = None
    seed: int = 0
    criterion: str = DEFAULT
    solver: str = "auto"
    recover_minutes: float = 12.0
    recover_steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))

    @property
    def measured_on(self) -> str | None:
        """The device that measures; None where the profile's is not at hand."""
        here = self.profile == "host" and self.accelerator in (None, CPU)
        return self.device or ("local" if here else None)

    @property
    def asked_of_lowering(self) -> dict[str, Any]:
        """What is to be other than the profile's."""
        keys = ("precision", "runtime", "delegate", "accelerator")
        asked = {key: getattr(self, key) for key in keys}
        return {key: value for key, value in asked.items() if value is not None}

    @property
    def distils(self) -> bool:
        """Whether distillation is asked for, should the task give training batches."""
        return bool(self.recover_steps or self.recover_minutes)

    @property
    def trial_steps(self) -> int:
        """Of distillation, before candidate plans are scored."""
        return min(TRIAL_STEPS, self.recover_steps or TRIAL_STEPS) if self.distils else 0

    @property
    def trial_minutes(self) -> float | None:
        """What those steps may take for one candidate; None where steps are exact."""
        return None if self.recover_steps else TRIAL_SHARE * self.recover_minutes
