"""What every part raises when the user, a file or the machine is at fault.

One line each: what is wrong, where, and how to fix it. The command line prints that line and leaves with
`exit_code`; a traceback means a fault of ours, never of the input.
"""

from __future__ import annotations


class GroundThinkError(Exception):
    """Base of all errors a user can cause.

    Args:
        what: the problem, with the offending value in it.
        where: file, field, flag or layer; empty if `what` already says it.
        fix: what to change; empty only when nothing can be done.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        cure = f" Fix: {self.fix}" if self.fix else ""
        return f"{place}{self.what}{cure}".replace("\n", " ")


class ConfigError(GroundThinkError):
    """A field, flag, pattern or YAML file that cannot be honoured."""


class DataError(GroundThinkError):
    """A corpus, tokenizer or token file that cannot be used."""


class TaskError(GroundThinkError):
    """An episode that does not fit its vocabulary or its length."""


class CheckpointError(GroundThinkError):
    """A checkpoint that is missing, truncated, or of another model."""


class StateError(GroundThinkError):
    """A snapshot that does not fit the model or the batch it is given to."""


class BackendError(GroundThinkError):
    """A backend that does not exist here or cannot do what is asked."""


class ResourceError(GroundThinkError):
    """The machine has too little memory for what is asked."""
