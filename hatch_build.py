"""Wheels carry our native libraries for the machine that they are built on."""

from __future__ import annotations

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CarryLibraries(BuildHookInterface):
    """Compiles them as first use would, and puts them where ``build_library`` looks first.

    That takes the packages that edgeprune itself needs, which an isolated build does not have: it
    makes a wheel for any machine, and first use compiles.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling; ``version`` is "editable" where nothing is to be carried."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from edgeprune.errors import InputError

        try:
            from edgeprune.kernels import LIBRARIES, TARGETS, build_library, host_target

            target = TARGETS[host_target()]
            built = [build_library(name) for name in LIBRARIES]
        except (ModuleNotFoundError, InputError) as error:
            self.app.display_warning(f"this wheel carries no libraries, see make wheel: {error}")
            return
        for path in built:
            place = f"edgeprune/_libraries/{path.parent.name}/{path.name}"
            build_data["force_include"][str(path)] = place
        build_data.update(pure_python=False, tag=f"py3-none-{target.wheel_platform}")
