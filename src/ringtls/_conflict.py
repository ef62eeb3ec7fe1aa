"""One task at a time: trio's rule for the two directions of a stream."""

from __future__ import annotations

from typing import NoReturn

import trio

__all__ = ["ConflictDetector"]


class ConflictDetector:
    """A context manager that one task at a time may be in. Where speed counts, its steps are
    taken by hand.

    Raises:
      trio.BusyResourceError: another task is in it.
    """

    __slots__ = ("_message", "busy")

    def __init__(self, message: str) -> None:
        self._message = message
        self.busy = False

    def __enter__(self) -> None:
        if self.busy:
            self.refuse()
        self.busy = True

    def __exit__(self, *exc_info: object) -> None:
        self.busy = False

    def refuse(self) -> NoReturn:
        raise trio.BusyResourceError(self._message)
