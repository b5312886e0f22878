"""What tests of kernels on drawn sizes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypothesis import HealthCheck, settings

from edgeprune.errors import InputError

FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def running(names: Iterable[str], kernel_named: Callable[[str], object]) -> list[str]:
    """Those of the kernels that this machine runs."""

    def runs(name: str) -> bool:
        try:
            kernel_named(name)
        except InputError:
            return False
        return True

    return [name for name in names if runs(name)]
