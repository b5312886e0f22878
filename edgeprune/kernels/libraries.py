"""The shared libraries that can be built: the kernels alone, or with a runtime's adapters."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.kernels.targets import Target, host_target


@dataclass(frozen=True)
class Library:
    """What goes into a shared library besides the kernels.

    Attributes:
        file: its name.
        folders: of ``backends/``, whose sources adapt the kernels to a runtime.
        package: whose wheel has the headers and libraries to build against; empty: none.
        defines: for the compiler.
        includes: below the package.
        links: libraries below the package's ``lib``.
        with_cpp: whether the adapters include headers of the C++ library; else they are compiled
            as kernels are. All need a few functions of the C library.
    """

    file: str
    folders: tuple[str, ...] = ()
    package: str = ""
    defines: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    with_cpp: bool = False

    def sdk(self, target: str, given: Path | None) -> Path | None:
        """The folder of headers and libraries; None where none is needed.

        Raises:
            InputError: it is needed for another machine than this and was not given, or lacks
                what is to be linked.
        """
        if not self.package:
            return None
        if given is None:
            given = self._installed(target)
        missing = [name for name in self.links if not (given / "lib" / f"lib{name}.so").is_file()]
        if missing:
            raise InputError(
                f"{given}: no lib/lib{missing[0]}.so in it. Give the folder '{self.package}' of "
                "an unpacked wheel."
            )
        return given

    def compile_flags(self, sdk: Path | None) -> tuple[str, ...]:
        """Of the adapters."""
        # As system headers: their warnings are not ours.
        folders = [flag for each in self.includes for flag in ("-isystem", f"{sdk}/{each}")]
        return (*(f"-D{each}" for each in self.defines), *folders)

    def link_flags(self, sdk: Path | None) -> tuple[str, ...]:
        """Of the library."""
        if not self.links:
            return ()
        found = (f"-l{name}" for name in self.links)
        # Python has them in memory by then; an app may keep ours beside them.
        return (f"-L{sdk}/lib", *found, "-Wl,-rpath,$ORIGIN", "-Wl,-z,defs")

    def check(self, name: str, target: Target) -> None:
        """Refuse targets that the adapters cannot be built for.

        Raises:
            InputError: they need a C++ library's headers, and there are none.
        """
        if self.with_cpp and not target.with_libc:
            raise InputError(
                f"{self.file} for {name} needs the NDK's C++ library: build it with CMake, as "
                "docs/kernels.md says. The kernels alone need none."
            )

    def _installed(self, target: str) -> Path:
        found = importlib.util.find_spec(self.package)
        folders = list(found.submodule_search_locations or ()) if found else []
        if target != host_target() or not folders:
            raise InputError(
                f"{self.file} for {target} is built against {self.package}'s wheel for it. Unpack "
                f"that, and give its folder: --sdk FOLDER/{self.package}"
            )
        return Path(folders[0])


# The wheel's libraries are built with GNU's C++ library, zig has LLVM's. What crosses between them
# is ExecuTorch's own types; a std::variant in one of them is laid out the same with this setting.
LIBRARIES = {
    "kernels": Library("libedgeprune_kernels.so"),
    "executorch": Library(
        "libedgeprune_executorch.so",
        folders=("region", "executorch"),
        package="executorch",
        defines=(
            *("C10_USING_CUSTOM_GENERATED_MACROS", "ET_USE_THREADPOOL"),
            *("ET_EVENT_TRACER_ENABLED", "_LIBCPP_ABI_VARIANT_INDEX_TYPE_OPTIMIZATION"),
        ),
        includes=("include", "include/executorch/runtime/core/portable_type/c10"),
        links=("executorch", "executorch_threadpool"),
        with_cpp=True,
    ),
    # No wheel has LiteRT's headers: the adapter brings what it needs of them.
    "litert": Library("libedgeprune_litert.so", folders=("litert",)),
}
