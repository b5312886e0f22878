"""What kernels can be built for, and with which compiler flags."""

from __future__ import annotations

import difflib
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.errors import InputError


@dataclass(frozen=True)
class Target:
    """A system that kernels run on.

    Attributes:
        triple: as zig names it, with the oldest C library that will do.
        kernels: instruction set -> flags; the sources are compiled once for each.
        with_libc: whether the library may use one. Android's is not here to link with.
    """

    triple: str
    kernels: Mapping[str, tuple[str, ...]]
    with_libc: bool = True

    @property
    def link_flags(self) -> tuple[str, ...]:
        """Of the shared library."""
        if self.with_libc:
            return ()
        # Phones with 16 KB pages load nothing that is aligned to less.
        return ("-nostdlib", "-Wl,-z,max-page-size=16384", "-Wl,-z,defs")


_X86 = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "sse2": (),
}
_ARM: dict[str, tuple[str, ...]] = {"neon": ()}

TARGETS = {
    "x86_64-linux": Target("x86_64-linux-gnu.2.28", _X86),
    "aarch64-linux": Target("aarch64-linux-gnu.2.28", _ARM),
    "aarch64-android": Target("aarch64-linux-android", _ARM, with_libc=False),
}


def target_named(name: str) -> Target:
    """The target of that name.

    Raises:
        InputError: there is none; names the nearest.
    """
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(name, TARGETS, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise InputError(f"there is no target '{name}'. {hint}Known: {', '.join(TARGETS)}.")


def host_target() -> str:
    """The name of this machine's target.

    Raises:
        InputError: it is none of them.
    """
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    name = f"{machine}-{platform.system().lower()}"
    if name not in TARGETS:
        raise InputError(f"no kernels for this machine ({name}); there are: {', '.join(TARGETS)}")
    return name
