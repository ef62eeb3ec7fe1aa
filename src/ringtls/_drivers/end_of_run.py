"""What both drivers do with what is still open when their run, or their thread, ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._clock import now
from .._log import log

if TYPE_CHECKING:
    from .._interfaces import Ending

__all__ = ["LATE", "Patience", "adopt", "give_up"]

#: Seconds after its deadline in which an end must have come, or is given up (rule C16).
LATE = 1.0


class Patience:
    """How long the ends are waited for, from now on.

    Those whose deadline was over before have LATE seconds, too: it may be long ago that somebody
    looked what has become of them.
    """

    def __init__(self) -> None:
        self._begin = now()

    def lasts_until(self, endings: Iterable[Ending]) -> float:
        """A time of _clock.now()."""
        return max(self._begin, *(ending.deadline for ending in endings)) + LATE


def adopt(endings: Iterable[Ending]) -> None:
    """End what is still open, as if it had been dropped."""
    left_open = [ending for ending in endings if not ending.started]
    for ending in left_open:
        ending.start_as_orphan()
    for ending in left_open:
        try:
            ending.warn_unclosed()
        except ResourceWarning as warning:  # the user's filter makes it an error
            log(logging.ERROR, "%s", warning)
        except BaseException as failure:  # by warnings.showwarning(), or where logging captures it
            text = "what was made at %s is unclosed, and warning of that raised %r"
            log(logging.ERROR, text, ending.made_at, failure, failure=failure)


def give_up(endings: Iterable[Ending]) -> None:
    """Let go of what has not ended in time, each whatever the others do."""
    for ending in list(endings):
        try:
            ending.give_up()
        except BaseException as failure:
            log(logging.ERROR, "%r could not be given up: %r", ending, failure, failure=failure)
