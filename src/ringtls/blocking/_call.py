"""``call``: asynchronous code in a plain thread.

Awaiting a blocking stream's face never suspends, so a coroutine that awaits nothing else runs to
its end at its first step. One that does suspend has asked an event loop for something: it gets a
RuntimeError there, at the await, and goes on with that. So its ``finally`` and ``async with``
blocks run.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from traceback import walk_tb
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from ._faces import face_of, without_face

__all__ = ["call"]

T = TypeVar("T")

#: Packages whose functions raise one of these, each in words of its own, where no event loop runs.
NO_LOOP = (RuntimeError, AttributeError)
LOOPS = {"anyio", "asyncio", "sniffio", "trio"}

#: Of coroutines, and generators that are awaited: their frame, and what they await.
SUSPENDED = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


class _Place(NamedTuple):
    """Somewhere in the code."""

    frame: FrameType
    line: int

    @property
    def function(self) -> str:
        """Its name, as it is imported if it belongs to a package's own names."""
        module, name = self.frame.f_globals.get("__name__", "?"), self.frame.f_code.co_qualname
        public = hasattr(sys.modules.get(self.package), name)
        return f"{self.package if public else module}.{name}"

    @property
    def package(self) -> str:
        module: str = self.frame.f_globals.get("__name__", "?")
        return module.partition(".")[0]

    @property
    def is_of_a_loop(self) -> bool:
        """Is it in a package that needs an event loop? ringtls' own do, but for this module."""
        is_ours = self.package == "ringtls" and self.frame.f_globals.get("__name__") != __name__
        return is_ours or self.package in LOOPS

    def __str__(self) -> str:
        return f"{self.frame.f_code.co_filename}:{self.line}, in {self.frame.f_code.co_qualname}"


def call(async_fn: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
    """Run an asynchronous function in this thread, without an event loop.

    Blocking streams among the arguments stand for their asynchronous faces: the function awaits
    their methods and enters them by ``async with``, as it does with the streams of ringtls in a
    trio run. So one body, a protocol's client say, serves both. All methods are there but
    ``start_send`` and ``start_receive``. What makes streams is given as an
    argument, too: where that is ``SocketStream``, ``TlsStream`` or ``open_tls_over_tcp_stream`` of
    ringtls.blocking, or a functools.partial of one, the function gets it as ringtls' own is called.

    Timeouts, KeyboardInterrupt and the ends of streams are those of the blocking streams.

    Returns:
      What the function returns; if that is an asynchronous face, the blocking stream.

    Raises:
      RuntimeError: the function awaited something that needs an event loop; the text names it.
      BaseException: what the function raises.
    """

    async def main() -> T:
        return await async_fn(
            *map(face_of, args), **{name: face_of(value) for name, value in kwargs.items()}
        )

    coroutine = main()
    try:
        coroutine.send(None)
        while True:
            coroutine.throw(_refusal(*_suspended(coroutine)))
    except StopIteration as done:
        result: T = without_face(done.value)
        return result
    except NO_LOOP as error:
        places = [_Place(*each) for each in walk_tb(error.__traceback__)]
        if places[-1].package in LOOPS:
            raise _refusal(places) from error
        raise


def _suspended(coroutine: Any) -> tuple[list[_Place], Any]:
    """Where a coroutine waits, from the outside in, and what waits there, if that is no code."""
    places = []
    while True:
        for frame_name, awaited_name in SUSPENDED:
            if (frame := getattr(coroutine, frame_name, None)) is not None:
                places.append(_Place(frame, frame.f_lineno))
                coroutine = getattr(coroutine, awaited_name)
                break
        else:
            return places, coroutine


def _refusal(places: list[_Place], awaited: object = None) -> RuntimeError:
    """Names what needs an event loop, and where it was awaited."""
    callers = [place for place in places if place.package != "contextlib"]
    if awaited is not None:
        name = type(awaited).__qualname__
    else:
        name = callers.pop().function
        while callers[-1].is_of_a_loop:
            name = callers.pop().function
    return RuntimeError(
        f"{name} needs an event loop, and in ringtls.blocking.call() there is none: {callers[-1]}"
    )
