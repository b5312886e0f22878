"""What can go wrong, as a user meets it: one sentence, one exit code."""

from __future__ import annotations


class EdgepruneError(Exception):
    """A failure with a message fit for a user: what, where, got, wanted, next step.

    Args:
        message: one line for the terminal.
        detail: the long story (a compiler's output, a traceback), shown under ``-v``.
    """

    exit_code = 1

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class InputError(EdgepruneError):
    """The user's input cannot be used as it stands."""

    exit_code = 2


class InfeasibleError(EdgepruneError):
    """No plan meets the budget; the message says which bound and what is reachable."""

    exit_code = 3


class DeviceError(EdgepruneError):
    """A device could not do what it was asked; the message names device and stage."""

    exit_code = 6


class LostError(DeviceError):
    """The connection to a device was lost. It cleans up by itself; trying again may help."""
