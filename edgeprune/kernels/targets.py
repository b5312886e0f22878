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
        kernels: instruction set -> flags; attention and normalisation are compiled for each.
        linear: the same for linear layers in 8 bits, which have instructions of their own.
        with_libc: whether the library may use one. Android's is not here to link with.
    """

    triple: str
    kernels: Mapping[str, tuple[str, ...]]
    linear: Mapping[str, tuple[str, ...]]
    with_libc: bool = True

    @property
    def link_flags(self) -> tuple[str, ...]:
        """Of the shared library."""
        if self.with_libc:
            return ()
        # Phones with 16 KB pages load nothing that is aligned to less.
        return ("-nostdlib", "-Wl,-z,max-page-size=16384", "-Wl,-z,defs")

    @property
    def wheel_platform(self) -> str:
        """Of a wheel that carries libraries for this Linux: ``manylinux_2_28_x86_64``."""
        machine, _, version = self.triple.partition("-linux-gnu.")
        return f"manylinux_{version.replace('.', '_')}_{machine}"


_X86 = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "sse2": (),
}
_X86_LINEAR = {
    "avx512vnni": (*_X86["avx512"], "-mavx512vnni"),
    "avxvnni": (*_X86["avx2"], "-mavxvnni"),
    **_X86,
}
_ARM: dict[str, tuple[str, ...]] = {"neon": ()}
_ARM_LINEAR = {
    "neon_i8mm": ("-mcpu=generic+dotprod+i8mm",),
    "neon_dot": ("-mcpu=generic+dotprod",),
    **_ARM,
}

TARGETS = {
    "x86_64-linux": Target("x86_64-linux-gnu.2.28", _X86, _X86_LINEAR),
    "aarch64-linux": Target("aarch64-linux-gnu.2.28", _ARM, _ARM_LINEAR),
    "aarch64-android": Target("aarch64-linux-android", _ARM, _ARM_LINEAR, with_libc=False),
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
