"""Runtimes as the worker knows them: one module each, which loads its libraries when first used."""

from edgeprune.devices.runtimes.executorch import Executorch
from edgeprune.devices.runtimes.litert import Litert
from edgeprune.devices.runtimes.runtime import RUNTIMES, Method, Run, Runtime, runtime_of

__all__ = ["RUNTIMES", "Executorch", "Litert", "Method", "Run", "Runtime", "runtime_of"]
