"""The exceptions of streams and engine. Others that these raise are trio's, ssl's and Python's."""

from __future__ import annotations

from typing import TypeVar

import trio

ErrorT = TypeVar("ErrorT", bound=BaseException)


class TruncationError(trio.BrokenResourceError):
    """The connection ended without the peer's close_notify.

    Whoever sits on the path can end a TCP connection; only the peer can send close_notify.
    So what was read so far may be only a part of what the peer sent (RFC 8446, section 6.1).
    """


class RingUnavailableError(OSError):
    """This process can't have the engine it needs; the text says why and what to change.

    That is so where io_uring is refused and the environment variable RINGTLS_ENGINE forces it, and
    where no descriptor is left. Else epoll takes the place of an io_uring that is refused.
    """


class RingFailedError(OSError):
    """The ring has failed, and not one connection or another."""


def wrong_caller(*, is_forked: bool) -> RuntimeError:
    """The error of a call by a forked child, or by another thread than the stream's own."""
    if is_forked:
        return RuntimeError(
            "this connection belongs to the parent process: "
            "a forked child can't use it, open a new one"
        )
    return RuntimeError(
        "this stream belongs to another thread: use a stream in the thread that made it"
    )


def without_frames(error: ErrorT) -> ErrorT:
    """A copy to keep: an error that was raised refers to frames, and they to the stream and to
    the callers."""
    copy = type(error)(*error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def taken_out(errors: list[ErrorT]) -> list[ErrorT]:
    """What the list has, in another one: if a frame to which an error refers had it for longer,
    all that the frames have would be freed late."""
    return [errors.pop(0) for _ in range(len(errors))]
