"""An operation that was started and can be awaited later: what ``start_...`` methods hand out.

Rules:

1. It runs without being awaited. The ring submits it, with all others of that tick, when the
   task that started it next yields to the loop.
2. Its result is handed out once. A second ``await`` is an error at the call, whether the first
   still waits or already has the result.
3. An operation that is dropped without being awaited or cancelled is a ResourceWarning. What then
   happens to it is decided by its Handle (rule 2 of _engine.request).
4. It belongs to one trio run. Starting, awaiting or cancelling it elsewhere (another thread,
   another run, no run, a forked child) is a RuntimeError.
5. It does not keep its stream open. If the stream ends first, awaiting it is a
   ClosedResourceError. An orderly end waits for a send: FIN comes behind its last byte.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from trio.lowlevel import enable_ki_protection

from .._drivers.trio import TrioDriver
from .._engine.handle import Handle
from .._errors import wrong_caller
from . import leaks
from .uncopyable import Uncopyable

if TYPE_CHECKING:
    from .._engine.request import Request
    from .._interfaces import Driver

__all__ = ["Operation", "check_run"]

T_co = TypeVar("T_co", covariant=True)


def check_run(driver: Driver) -> None:
    """Rule 4.

    Raises:
      RuntimeError: the caller is not in this driver's trio run.
    """
    if driver.is_forked:
        raise wrong_caller(is_forked=True)
    if TrioDriver.current() is not driver:
        raise RuntimeError("this belongs to another trio run: use it in the run that made it")


@final
class Operation(Uncopyable, Generic[T_co]):
    """An operation of the kernel that was started: ``await`` it for its result.

    Made by ``start_send``, ``start_receive`` and ``start_accept``. It happens whether or not
    anybody waits for it. Await it in the trio run that made it, once. ``nursery.start_soon(
    operation.wait)`` has a nursery see to its end.

    One that is dropped without having been awaited gives a ResourceWarning that says where it was
    started. A receive or an accept is then cancelled, and what came all the same is lost (a
    connection is closed); a send completes.

    So does a send whose stream is closed meanwhile: FIN comes behind it. After 5 seconds the
    connection is reset instead.
    """

    __slots__ = (
        "_awaited",
        "_cancelled",
        "_check",
        "_convert",
        "_driver",
        "_handle",
        "_made_at",
        "_request",
    )

    def __init__(
        self,
        driver: Driver,
        request: Request,
        *,
        convert: Callable[[int | bytes], T_co],
        check: Callable[[OSError], None],
    ) -> None:
        self._awaited = False
        self._cancelled = False
        self._driver = driver
        self._request = request
        self._handle = Handle(driver.ring, request)
        self._convert = convert
        self._check = check
        self._made_at = leaks.caller()
        leaks.still_open.add(request)

    @property
    def done(self) -> bool:
        """True when the kernel is done with it. Then ``await`` does not wait."""
        return self._request.is_over

    @enable_ki_protection
    def cancel(self) -> None:
        """Ask the kernel to end it early. Does not wait, and does nothing if it is done.

        ``await`` it to know what came of that: its result if it had one by then, else an OSError.

        Raises:
          RuntimeError: it belongs to another run.
        """
        check_run(self._driver)
        self._cancelled = True
        leaks.still_open.discard(self._request)
        if not self.done:
            self._handle.cancel()

    @enable_ki_protection
    async def wait(self) -> T_co:
        """Wait until it is done and hand out its result; ``await operation`` as a function.

        If this is cancelled, the operation is cancelled, too, and has ended when this returns. If
        it has a result by then, or had one before, that is returned, and the cancellation comes
        out at the next checkpoint.

        Raises:
          OSError: of errno ECANCELED: ``cancel()`` has ended it, and it has no result.
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: the stream, or listener, was closed meanwhile; of a send: and
            not all could be sent by then, or the stream was reset.
          RuntimeError: it was awaited before, or belongs to another run.
        """
        check_run(self._driver)
        if self._awaited:
            raise RuntimeError(f"{self!r} was awaited before: its result is handed out once")
        self._awaited = True
        leaks.still_open.discard(self._request)
        try:
            if not self.done:
                return self._convert(await self._driver.wait(self._handle))
            result = self._convert(self._handle.take())
        except OSError as error:
            self._check(error)
            raise
        await self._driver.cancel_shielded_checkpoint()
        return result

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        return f"<Operation: {self._request!r}>"

    def __del__(self) -> None:
        leaks.still_open.discard(self._request)
        if self._awaited or self._cancelled or self._driver.is_forked:
            return
        text = f"{self._request.label}, started at {self._made_at}, was never awaited"
        leaks.report(text)
        warnings.warn(f"{text}: its result is lost", ResourceWarning, stacklevel=2)
