"""The face: one command a file. Torch takes seconds to load: commands import it when they run."""

from edgeprune.cli import (
    apply,
    build,
    criteria,
    devices,
    doctor,
    inspect,
    kernels,
    lower,
    measure,
    plan,
    profiles,
    report,
    runner,
    tables,
    validate,
)
from edgeprune.cli.app import app, main

__all__ = [
    "app",
    "apply",
    "build",
    "criteria",
    "devices",
    "doctor",
    "inspect",
    "kernels",
    "lower",
    "main",
    "measure",
    "plan",
    "profiles",
    "report",
    "runner",
    "tables",
    "validate",
]
