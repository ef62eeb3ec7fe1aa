"""One task at a time: trio's rule for the two directions of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    from .._engine.request import Request

__all__ = ["ConflictDetector"]


class ConflictDetector:
    """A context manager that one task at a time may be in. Where speed counts, its steps are
    taken by hand.

    Raises:
      trio.BusyResourceError: another task is in it, or an operation.
    """

    __slots__ = ("_message", "_request", "busy")

    def __init__(self, message: str) -> None:
        self._message = message
        self._request: Request | None = None
        self.busy = False

    def __enter__(self) -> None:
        if self.busy:
            self.refuse()
        if self._request is not None and not self._request.is_over:
            raise trio.BusyResourceError(f"an operation is still in flight: {self._request!r}")
        self.busy = True

    def __exit__(self, *exc_info: object) -> None:
        self.busy = False

    def hold(self, request: Request) -> None:
        """Let nobody in until the kernel is done with this."""
        self._request = request

    def refuse(self) -> NoReturn:
        raise trio.BusyResourceError(self._message)
