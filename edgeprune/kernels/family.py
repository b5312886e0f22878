"""The kernels' library in this process, and the families of kernels in it."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Generic, TypeVar

from edgeprune.errors import InputError
from edgeprune.kernels.build import build_library

Kernel = TypeVar("Kernel", bound=ctypes.Structure)


class Family(Generic[Kernel]):
    """Kernels for one operator, one for each instruction set.

    Args:
        symbol: the family in names of functions: "norm" of ``ep_norm_kernel``.
        operator: as messages call it.
        kernel: the structure that stands for one.
    """

    def __init__(self, symbol: str, operator: str, kernel: type[Kernel]) -> None:
        self._symbol, self._operator, self._kernel = symbol, operator, kernel

    def named(self, name: str | None) -> Kernel:
        """The kernel of that name, or the fastest that this machine runs.

        Raises:
            InputError: there is none.
        """
        find = library()[f"ep_{self._symbol}_kernel"]
        find.restype = ctypes.POINTER(self._kernel)
        found = find(name.encode() if name else None)
        if not found:
            raise InputError(f"{self._operator}: this machine runs no kernel '{name}'")
        kernel: Kernel = found.contents
        return kernel

    def check(self, call: ctypes.Structure) -> None:
        """Refuse a call that no kernel takes.

        Raises:
            InputError: with the reason.
        """
        refuses = library()[f"ep_{self._symbol}_refuses"]
        refuses.restype = ctypes.c_char_p
        if reason := refuses(ctypes.byref(call)):
            raise InputError(f"{self._operator}: {reason.decode()}")


@cache
def library() -> ctypes.CDLL:
    """The kernels for this machine, compiled when they are first asked for."""
    return ctypes.CDLL(str(build_library()))
