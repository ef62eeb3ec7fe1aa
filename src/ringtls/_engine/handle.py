"""What a caller has of one request, from its submission to its result.

The rules are those of request.py. A Handle never owns the buffer: the ring does, through the
request, so that dropping a handle can free nothing that the kernel may touch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .request import Event, State

if TYPE_CHECKING:
    from .request import Request
    from .ring import Ring

__all__ = ["Handle"]


class Handle:
    """A request, for the one caller that may wait for it and take its result."""

    __slots__ = ("_request", "_ring")

    def __init__(self, ring: Ring, request: Request) -> None:
        self._ring = ring
        self._request = request

    @property
    def done(self) -> bool:
        """True when the kernel is done with it; the result may have been taken since."""
        return self._request.is_over

    def cancel(self) -> None:
        """Ask the kernel to end it. It is over when ``done`` is true, and not before."""
        self._ring.cancel(self._request)

    def notify(self, on_done: Callable[[Request], object]) -> None:
        """Have ``on_done`` called from the ring when it is over.

        Raises:
          RuntimeError: someone waits for it already, or it is over.
        """
        if self._request.on_done is not None:
            raise RuntimeError(f"{self!r} has a waiter already")
        if self._request.state not in (State.SUBMITTED, State.CANCELLING):
            raise RuntimeError(f"{self!r} is not in flight, there is nothing to wait for")
        self._request.on_done = on_done

    def take(self) -> int | bytes:
        """The result: bytes of a receive from the pool, else a count, an fd or 0.

        Raises:
          OSError: the operation failed (ECANCELED: it was cancelled); the text names it.
          RuntimeError: it is not over yet, or the result was taken before.
        """
        request = self._request
        request.advance(Event.TAKE)
        if request.failure is not None or request.result < 0:
            error = request.error()
            assert error is not None
            try:
                raise error
            finally:
                del error  # no reference cycle: it has this frame
        data, request.data = request.data, None
        return request.result if data is None else data

    def __repr__(self) -> str:
        return f"<Handle: {self._request!r}>"

    def __del__(self) -> None:
        request = self._request
        if request.state is State.DONE or (
            request.opcode.cancel_on_drop and request.state in (State.SUBMITTED, State.CANCELLING)
        ):
            self._ring.abandon(request)
