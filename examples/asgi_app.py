"""An ASGI application that greets a client by the name in its certificate, if it has one.

ringtls asgi examples.asgi_app:app
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        return
    name = scope["extensions"]["tls"]["client_cert_name"] or "stranger"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"hello, {name}".encode()})
