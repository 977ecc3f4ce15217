"""What medssl says when something cannot be done: what is wrong, where, what to do."""

from __future__ import annotations


class MedsslError(Exception):
    """A failure the user can mend, told in one line of three parts.

    Args:
        what: what is wrong, with the value found and the value wanted.
        where: the file, key or tensor; never a patient's name or a header's free text.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        text = f"{self.what} ({self.where})" if self.where else self.what
        return f"{text}; {self.fix}" if self.fix else text


class UsageError(MedsslError):
    """The command or function was called in a way that cannot work."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe, or an override of one, says something that is not understood."""


class DataError(MedsslError):
    """Images, labels or tables that cannot be trusted or read."""


class WeightsError(MedsslError):
    """Weights that did not find their place, or are not weights."""


class RunError(MedsslError):
    """A training run that cannot start, go on, or be resumed."""
