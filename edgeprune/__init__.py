"""edgeprune: prune a network for the device it must run on, and prove it there.

Names load when they are first used, because torch takes seconds. Four verbs share their name with
the room they live in (`edgeprune.build`, `lower`, `solve`, `validate`): those modules can be
called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeprune.budget import Budget as Budget
    from edgeprune.build import BuildResult as BuildResult
    from edgeprune.build import build as build
    from edgeprune.cost import CostTable as CostTable
    from edgeprune.cost import estimate_costs as estimate_costs
    from edgeprune.cost import measure_costs as measure_costs
    from edgeprune.devices import Workload as Workload
    from edgeprune.devices import connect as connect
    from edgeprune.errors import EdgepruneError as EdgepruneError
    from edgeprune.errors import InfeasibleError as InfeasibleError
    from edgeprune.errors import InputError as InputError
    from edgeprune.lower import Artifact as Artifact
    from edgeprune.lower import Lowering as Lowering
    from edgeprune.lower import lower as lower
    from edgeprune.lower import lower_signatures as lower_signatures
    from edgeprune.plan import Plan as Plan
    from edgeprune.profile import Profile as Profile
    from edgeprune.profile import list_profiles as list_profiles
    from edgeprune.profile import load_profile as load_profile
    from edgeprune.program import Program as Program
    from edgeprune.program import capture as capture
    from edgeprune.recover.distil import distil as distil
    from edgeprune.recover.refit import refit as refit
    from edgeprune.settings import Settings as Settings
    from edgeprune.sites import Site as Site
    from edgeprune.sites import Sites as Sites
    from edgeprune.sites import find_sites as find_sites
    from edgeprune.solve import Bounds as Bounds
    from edgeprune.solve import Problem as Problem
    from edgeprune.solve import Solution as Solution
    from edgeprune.solve import solve as solve
    from edgeprune.surgery.apply import apply as apply
    from edgeprune.surgery.transfer import transfer as transfer
    from edgeprune.task import Task as Task
    from edgeprune.task import load_task as load_task
    from edgeprune.validate import Reference as Reference
    from edgeprune.validate import Verdict as Verdict
    from edgeprune.validate import validate as validate

_ROOMS = {
    "budget": ("Budget",),
    "build": ("BuildResult", "build"),
    "cost": ("CostTable", "estimate_costs", "measure_costs"),
    "devices": ("Workload", "connect"),
    "errors": ("EdgepruneError", "InfeasibleError", "InputError"),
    "lower": ("Artifact", "Lowering", "lower", "lower_signatures"),
    "plan": ("Plan",),
    "profile": ("Profile", "list_profiles", "load_profile"),
    "program": ("Program", "capture"),
    "recover": ("distil", "refit"),
    "settings": ("Settings",),
    "sites": ("Site", "Sites", "find_sites"),
    "solve": ("Bounds", "Problem", "Solution", "solve"),
    "surgery": ("apply", "transfer"),
    "task": ("Task", "load_task"),
    "validate": ("Reference", "Verdict", "validate"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    room = importlib.import_module(f"edgeprune.{_HOMES[name]}")
    return room if name == _HOMES[name] else getattr(room, name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Verb(ModuleType):
    """A module that is called like the function that shares its name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **named)


class _Face(ModuleType):
    """This package: the import system hands it each room, and it lets the verbs be called."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == name:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
