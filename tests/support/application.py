"""An ASGI application for servers of the tests: plain functions, no framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["application"]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PIECE = bytes(16384)


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
    else:
        await _PATHS[scope["path"]](scope, receive, send)


async def _tell_version(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    body = scope["http_version"].encode()
    length = str(len(body)).encode()
    await _start(send, (b"content-length", length))
    await send({"type": "http.response.body", "body": body})


async def _echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """What came goes back in the same pieces, when all has come: httpcore does not read before."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    await _start(send)
    for message in messages:
        await send({**message, "type": "http.response.body"})


async def _send_for_ever(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await _start(send)
    while True:
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})


async def _start(send: Send, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})


_PATHS = {"/": _tell_version, "/echo": _echo, "/for-ever": _send_for_ever}
