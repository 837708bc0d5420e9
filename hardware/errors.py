"""Every error that this project raises on purpose.

They live in the lowest room because each room above may raise them; `proxyless_strategy` re-exports them.
Each message names the thing, its value and what to do next.
"""

from __future__ import annotations

MOST_CHARACTERS = 2000
"""Of a message. Whoever writes one cuts the values in it; this is for the value that nobody thought of."""


class ProxylessError(Exception):
    """Base of all errors that a user can mend; the command line prints its message alone and exits with 2."""

    def __str__(self) -> str:
        text = super().__str__()
        half = MOST_CHARACTERS // 2
        return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


class ConfigError(ProxylessError):
    """A setting is unknown, missing or impossible."""


class CheckpointError(ConfigError):
    """A checkpoint cannot be written or read, or belongs to another run."""


class DataError(ProxylessError):
    """A data set is missing, has another layout than expected, or is too small to be split."""


class PictureError(DataError):
    """A picture cannot be read, or does not say what is to be seen.

    Attributes:
        path: Its file, where it has one.
        reason: What is wrong with it, in a few words.
        unclear: Whether it can be read, and a setting must say how.
    """

    def __init__(self, message: str, path: str | None = None, *, reason: str | None = None, unclear: bool = False):
        super().__init__(message)
        self.path = path
        self.reason = reason or message
        self.unclear = unclear


class SpaceError(ProxylessError):
    """A search space is unknown or its declaration is impossible."""


class SubnetError(ProxylessError):
    """A choice names an unknown edge or candidate, or leaves an edge out."""


class UnsupportedSpaceError(SpaceError):
    """A search space has a mutable that the strategy cannot search."""


class TableError(ProxylessError):
    """A latency table cannot be read, or belongs to another space, input size, batch or device."""


class MissingOperatorError(TableError):
    """A latency table has no entry for an operator."""


class WriteError(ProxylessError):
    """A file cannot be written: the disk is full, or its place is not to be written to."""


class LockError(ProxylessError):
    """A lock file is a link, belongs to another user, or cannot be made."""


class BackendError(ProxylessError):
    """A measuring backend is unknown or not installed."""


class EnergyError(ProxylessError):
    """This machine does not tell what energy is used, or not of the device that measures."""


class TargetError(ProxylessError):
    """A latency target cannot be reached by any subnet of the space."""


class ExportError(ProxylessError):
    """A subnet could not be exported, or its exported form differs from the model."""


class ExperimentError(ProxylessError):
    """An NNI experiment could not start, or one of its trials failed."""


class TrainingError(ProxylessError):
    """A training went wrong in a way that its settings can mend."""
