"""An ASGI application for servers of the tests: plain functions, no framework."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio

__all__ = ["CANCELLED", "PIECE", "application", "silent", "unwilling"]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PIECE = bytes(16384)

MUCH = 64 * 1024 * 1024

#: How many sends are cancelled: more than a connection takes in at once.
CANCELLED = 100


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
    else:
        await _PATHS[scope["path"]](scope, receive, send)


async def silent(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """It wants no lifespan, and answers nothing."""


async def unwilling(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """It does not start."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "not today"})


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


async def _send_much(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """More than connections take in. For servers that let an application go on without a client."""
    await _start(send)
    for _ in range(MUCH // len(PIECE)):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})


async def _wait_for_the_end(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer_when_told(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """When the whole request has come."""
    await _start(send)
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await send({"type": "http.response.body", "body": b"told"})


async def _answer_early(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await _start(send, (b"content-length", b"5"))
    await send({"type": "http.response.body", "body": b"early"})


async def _answer_unsized(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": b"whole"})


async def _cancel_sends(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Each send is cancelled before it begins."""
    await _start(send)
    for _ in range(CANCELLED):
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


async def _fail(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    raise ValueError("this application has a fault")


async def _fail_amid_an_answer(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise ValueError("this application has a fault")


async def _stop_amid_an_answer(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await trio.sleep_forever()


async def _tell_of_tls(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await _start(send)
    body = json.dumps(scope["extensions"].get("tls")).encode()
    await send({"type": "http.response.body", "body": body})


async def _talk(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """A WebSocket's messages go back; "over" is the last."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
        if message["text"] == "over":
            await send({"type": "websocket.close", "code": 3000})


async def _tell_for_ever(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """A WebSocket that only sends. Closing it afterwards is no error."""
    await receive()
    await send({"type": "websocket.accept"})
    try:
        while True:
            await send({"type": "websocket.send", "text": "tick"})
    finally:
        await send({"type": "websocket.close"})


async def _listen_for_ever(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """A WebSocket whose application does not look at what it receives."""
    await send({"type": "websocket.accept"})
    while True:
        await receive()


async def _start(send: Send, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})


_PATHS = {
    "/": _tell_version,
    "/echo": _echo,
    "/for-ever": _send_for_ever,
    "/much": _send_much,
    "/when-told": _answer_when_told,
    "/wait": _wait_for_the_end,
    "/early": _answer_early,
    "/unsized": _answer_unsized,
    "/cancelled": _cancel_sends,
    "/fail": _fail,
    "/half": _fail_amid_an_answer,
    "/stop": _stop_amid_an_answer,
    "/tls": _tell_of_tls,
    "/talk": _talk,
    "/tell": _tell_for_ever,
    "/listen": _listen_for_ever,
}
