"""The face: one command a file. Torch takes seconds to load: commands import it when they run."""

from edgeprune.cli import (
    apply,
    audit,
    build,
    criteria,
    devices,
    doctor,
    export,
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
    "audit",
    "build",
    "criteria",
    "devices",
    "doctor",
    "export",
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
