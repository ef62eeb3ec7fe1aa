"""httpx and httpcore on ringtls' streams, in a trio run.

    async with httpx.AsyncClient(transport=ringtls.httpcore.transport()) as client:
        response = await client.get("https://example.org")

An end without close_notify is an end here, as with httpcore's other backends: HTTP itself tells a
whole answer from a part, but for answers that only the connection's end delimits. Ours is
close_notify all the same, when a download is cancelled, too.

It needs httpx: ``pip install 'ringtls[httpx]'``.
"""

from __future__ import annotations

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

from .._drivers.trio import TrioDriver
from ._backend import AskedBackend, RingBackend

__all__ = ["RingBackend", "transport"]


def transport(**arguments: Any) -> httpx.AsyncHTTPTransport:
    """A transport on ringtls' streams, for ``httpx.AsyncClient``.

    Args:
      arguments: those of httpx.AsyncHTTPTransport: ``verify``, ``http2``, ``proxy``, ``uds``,
        ``limits`` and others.
    """
    made = httpx.AsyncHTTPTransport(**arguments)
    # httpx has no argument for it. Where these names are gone this raises AttributeError.
    pool = made._pool
    assert isinstance(pool._network_backend, httpcore.AsyncNetworkBackend)
    create = pool.create_connection

    def create_asked(origin: httpcore.Origin) -> _Pooled:
        pool._network_backend = asked = AskedBackend()
        return _Pooled(create(origin), asked)

    pool.create_connection = create_asked  # type: ignore
    return made


class _Pooled:
    """A connection that leaves its pool when it is of no more use.

    One of HTTP/2 that has failed would stay there, idle, until it expires; and what a pool does for
    a request takes longer with each that it has. One whose server has ended it, or leaves, takes no
    request. While one waits for its turn on it, it is in use, even if httpcore takes it for idle.
    """

    def __init__(self, below: httpcore.AsyncConnectionInterface, asked: AskedBackend) -> None:
        self._below = below
        self._asked = asked
        self._has_ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        TrioDriver.current()  # or RuntimeError
        return await self._asked.refusals.run(self._handle, request)

    async def _handle(self, request: httpcore.Request) -> httpcore.Response:
        stream = self._asked.stream
        if stream is not None and await stream.has_ended():
            self._has_ended = True
            raise httpcore.ConnectionNotAvailable
        return await self._below.handle_async_request(request)

    def is_available(self) -> bool:
        stream = self._asked.stream
        server_leaves = stream is not None and stream.server_leaves
        return not self._has_ended and not server_leaves and self._below.is_available()

    def is_idle(self) -> bool:
        return not self._asked.refusals.has_requests and self._below.is_idle()

    def has_expired(self) -> bool:
        if self._asked.refusals.has_requests:
            return False
        return (self.is_idle() and not self.is_available()) or self._below.has_expired()
