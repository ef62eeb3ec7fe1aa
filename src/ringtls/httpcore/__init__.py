"""httpx and httpcore on ringtls' streams, in a trio run.

    async with httpx.AsyncClient(transport=ringtls.httpcore.transport()) as client:
        response = await client.get("https://example.org")

An end without close_notify is an end here, as with httpcore's other backends: HTTP itself tells a
whole answer from a part, but for answers that only the connection's end delimits. Ours is
close_notify all the same, when a download is cancelled, too.

It needs httpx: ``pip install 'ringtls[httpx]'``.
"""

from __future__ import annotations

import re
import sys
from typing import Any

try:
    import httpcore
    import httpx
except ModuleNotFoundError as _error:
    if _error.name not in ("httpcore", "httpx"):
        raise
    raise ModuleNotFoundError(
        f"ringtls.httpcore needs {_error.name}: pip install 'ringtls[httpx]'", name=_error.name
    ) from _error

from ._backend import Inside, RingBackend, Stream
from ._requests import may_be_sent_twice

__all__ = ["RingBackend", "transport"]

#: What h2 says of a request that it does not begin.
NOT_BEGUN = re.compile("Invalid input ConnectionInputs.SEND_HEADERS |Max outbound streams is ")

#: What httpcore tells of a connection that no request has begun on.
NEW = "HTTP/1.1, NEW, "


def transport(**arguments: Any) -> httpx.AsyncHTTPTransport:
    """A transport on ringtls' streams, for ``httpx.AsyncClient``.

    Args:
      arguments: those of httpx.AsyncHTTPTransport: ``verify``, ``http2``, ``proxy``, ``uds``,
        ``limits`` and others.
    """
    made = httpx.AsyncHTTPTransport(**arguments)
    # httpx has no argument for it. Where these names are gone this raises AttributeError.
    pool = made._pool
    if not isinstance(pool._network_backend, httpcore.AsyncNetworkBackend):
        raise TypeError(f"httpx has a network backend of a kind unknown: {pool._network_backend!r}")
    pool._network_backend = RingBackend()
    create = pool.create_connection
    pool.create_connection = lambda origin: _Pooled(create(origin))  # type: ignore
    return made


class _Pooled:
    """A connection that leaves its pool when it is of no more use.

    One of HTTP/2 that has failed would stay there, idle, until it expires; and what a pool does for
    a request takes longer with each that it has. One whose server has ended it takes no request,
    and has those taken elsewhere that were waiting in it when GOAWAY came: not a byte of them was
    sent. Those that wait when the pool is closed fail, or it would have a connection again. One of
    HTTP/1.1 whose first request was cancelled before it began would take no other, and never end.
    It also counts what is inside, for rule 4 of ``_backend``.
    """

    def __init__(self, below: httpcore.AsyncConnectionInterface) -> None:
        self._below = below
        self._stream: Stream | None = None  # where HTTP/2 is spoken
        self._inside = Inside()
        self._has_ended = False
        self._is_left_new = False
        self._is_closed = False  # by its pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        if self._stream is not None and await self._stream.has_ended():
            self._has_ended = True
            raise httpcore.ConnectionNotAvailable
        outer = sys.exc_info()[1]  # the caller may be handling one
        is_once_only = not may_be_sent_twice(request)
        self._inside.once_only += is_once_only
        try:
            response = await self._below.handle_async_request(request)
        except httpcore.ProtocolError as error:
            if error.__context__ is not outer and self._has_not_begun(error):
                raise httpcore.ConnectionNotAvailable from error
            raise
        except BaseException:
            self._is_left_new = NEW in self._below.info()
            raise
        finally:
            self._inside.once_only -= is_once_only
        if response.extensions["http_version"] == b"HTTP/2":
            stream: Stream = response.extensions["network_stream"]
            stream.inside = self._inside
            self._stream = stream
        return response

    def _has_not_begun(self, error: httpcore.ProtocolError) -> bool:
        """True if the request may be begun elsewhere, because the connection ended before it."""
        if self._is_closed or self.is_available():
            return False
        return NOT_BEGUN.match(str(error.__context__)) is not None

    async def aclose(self) -> None:
        self._is_closed = True
        await self._below.aclose()

    def is_available(self) -> bool:
        return not self._has_ended and self._below.is_available()

    def has_expired(self) -> bool:
        is_of_no_use = self._below.is_idle() and not self.is_available()
        return is_of_no_use or self._is_left_new or self._below.has_expired()
