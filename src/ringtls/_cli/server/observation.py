"""``--metrics``: /metrics for Prometheus and /healthz for whoever asks, over plain HTTP.

It does not ask who is asking: it belongs in a network where everybody may know the figures. The
ring has no part in it: these connections are not to be among the figures.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from ringtls._accepting import accept_forever

from .exposition import CONTENT_TYPE, render
from .figures import Figures
from .metrics import Metrics

__all__ = ["Observation"]

logger = logging.getLogger("ringtls.server")

#: Bytes of a request, and seconds that one may take.
LIMIT = 8192
TIMEOUT = 5.0


@dataclass(frozen=True)
class Observation:
    """What is told, and where it is asked for."""

    sockets: Sequence[socket.socket]
    metrics: Metrics
    figures: Figures

    async def serve(self, is_healthy: Callable[[], bool]) -> None:
        """Answer until this is cancelled."""
        async with trio.open_nursery() as nursery:

            def begin(stream: trio.SocketStream) -> None:
                nursery.start_soon(self._serve_connection, stream, is_healthy)

            for sock in self.sockets:
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
                nursery.start_soon(accept_forever, listener.accept, begin)

    async def _serve_connection(
        self, stream: trio.SocketStream, is_healthy: Callable[[], bool]
    ) -> None:
        """Answer one request, and end the connection."""
        async with stream:
            with trio.move_on_after(TIMEOUT):
                try:
                    request = b""
                    while b"\r\n\r\n" not in request and len(request) < LIMIT:
                        data = await stream.receive_some(LIMIT)
                        if not data:
                            return
                        request += data
                    await stream.send_all(self._answer(request, is_healthy))
                except trio.BrokenResourceError:
                    return
                except Exception:
                    logger.exception("metrics: unexpected error")

    def _answer(self, request: bytes, is_healthy: Callable[[], bool]) -> bytes:
        match request.split(b"\r\n", 1)[0].split(b" "):
            case [b"GET", target, _]:
                head, body = self._found(target, is_healthy)
                return head + body
            case [b"HEAD", target, _]:
                return self._found(target, is_healthy)[0]
            case _:
                return b"".join(_NOT_FOUND)

    def _found(self, target: bytes, is_healthy: Callable[[], bool]) -> tuple[bytes, bytes]:
        match target.partition(b"?")[0]:
            case b"/metrics":
                self.figures.sample()
                return _response("200 OK", render(self.metrics), CONTENT_TYPE)
            case b"/healthz" if is_healthy():
                return _response("200 OK", b"ok\n")
            case b"/healthz":
                return _response("503 Service Unavailable", b"draining\n")
            case _:
                return _NOT_FOUND


def _response(
    status: str, body: bytes, media_type: str = "text/plain; charset=utf-8"
) -> tuple[bytes, bytes]:
    """Its head, and its body."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode(), body


_NOT_FOUND = _response("404 Not Found", b"try /metrics or /healthz\n")
