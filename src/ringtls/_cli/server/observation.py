"""``--metrics``: /metrics for Prometheus and /healthz for whoever asks, over plain HTTP.

It does not ask who is asking: it belongs in a network where everybody may know the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from .metrics import CONTENT_TYPE

__all__ = ["answer"]

logger = logging.getLogger("ringtls.server")

#: Bytes of a request, and seconds that one may take.
LIMIT = 8192
TIMEOUT = 5.0


async def answer(
    stream: trio.SocketStream, render: Callable[[], bytes], is_healthy: Callable[[], bool]
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
                await stream.send_all(_answer(request, render, is_healthy))
            except trio.BrokenResourceError:
                return
            except Exception:
                logger.exception("metrics: unexpected error")


def _answer(request: bytes, render: Callable[[], bytes], is_healthy: Callable[[], bool]) -> bytes:
    match request.split(b"\r\n", 1)[0].split(b" "):
        case [b"GET", b"/metrics", _]:
            return _response("200 OK", render(), CONTENT_TYPE)
        case [b"GET", b"/healthz", _] if is_healthy():
            return _response("200 OK", b"ok\n")
        case [b"GET", b"/healthz", _]:
            return _response("503 Service Unavailable", b"draining\n")
        case _:
            return _response("404 Not Found", b"try /metrics or /healthz\n")


def _response(status: str, body: bytes, media_type: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
