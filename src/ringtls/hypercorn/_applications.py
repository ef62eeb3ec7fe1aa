"""The applications of one connection, and how they talk with its protocol.

Rules:

1. An application hears that its client is gone, even if it has not taken what came before. What it
   sends afterwards raises ClientDisconnectedError, an OSError as ASGI asks for: one that sends for
   ever would never stop. So does a WebSocket's ``receive`` once it has told that, for one that only
   receives. Where that comes out of the application it is no error.
2. A WSGI application is called with a whole request, so it is not called if the client is gone
   before that.
3. ``send`` and ``receive`` are checkpoints, also where nothing is sent (the body of an answer to
   HEAD) or nobody is there: an application may call them for ever, and has others beside it.
4. To close a WebSocket that is gone is no error, nor is what its application sends after that.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.app_wrappers import WSGIWrapper
from hypercorn.trio.task_group import TaskGroup, _handle

from .._streams.tls import TlsStream

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.typing import AppWrapper

__all__ = ["Applications", "ClientDisconnectedError", "tls_extension"]


class ClientDisconnectedError(OSError):
    """An application has sent something to a client that is gone, or has asked a WebSocket for more
    after that had told of its end.

    Where an application lets it out it is no error, and is not logged. ASGI has an OSError for it.
    """


class Applications(TaskGroup):
    """The tasks of a connection."""

    def __init__(self, tls: dict[str, Any] | None) -> None:
        super().__init__()
        self._tls = tls

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        messages, received = trio.open_memory_channel[Any](config.max_app_queue_size)
        disconnect: dict[str, Any] | None = None
        is_websocket = scope["type"] == "websocket"
        has_heard = has_closed = False
        if self._tls is not None:
            scope["extensions"]["tls"] = self._tls

        async def put(message: Any) -> None:
            nonlocal disconnect
            if not message["type"].endswith(".disconnect"):
                with suppress(trio.ClosedResourceError):
                    await messages.send(message)
            elif disconnect is None:
                disconnect = message
                messages.close()

        async def receive() -> Any:
            nonlocal has_heard
            try:
                return await received.receive()
            except trio.EndOfChannel:
                pass
            await trio.lowlevel.checkpoint()
            if has_heard if is_websocket else isinstance(app, WSGIWrapper):  # rules 1 and 2
                raise ClientDisconnectedError("the client is gone")
            has_heard = True
            return disconnect

        async def send_unless_gone(message: Any) -> None:
            nonlocal has_closed
            has_closed = has_closed or message["type"] == "websocket.close"
            is_gone = disconnect is not None
            if not is_gone:
                await send(message)
            await trio.lowlevel.checkpoint()  # rule 3
            if is_gone and not has_closed:
                raise ClientDisconnectedError("the client is gone")

        async def finish(message: None) -> None:
            """The application has returned; or was cancelled with the connection: then the last
            words are the connection's."""
            if trio.current_effective_deadline() > -math.inf:
                await send(message)

        async def run(*arguments: Any) -> None:
            _, _, _, *spawning = arguments
            try:
                await app(scope, receive, send_unless_gone, *spawning)
            except* ClientDisconnectedError:
                pass

        self.spawn(
            _handle,
            run,
            config,
            scope,
            receive,
            finish,
            trio.to_thread.run_sync,
            trio.from_thread.run,
        )
        return put


def tls_extension(stream: TlsStream) -> dict[str, Any]:
    """What ASGI's TLS extension tells of a connection. Our own certificate is not known to ssl."""
    certificate = stream.getpeercert(binary_form=True)
    name = None
    if certificate is not None:
        from cryptography import x509

        name = x509.load_der_x509_certificate(certificate).subject.rfc4514_string()
    cipher = stream.cipher()
    version = stream.version()
    assert cipher is not None
    assert version is not None
    return {
        "server_cert": None,
        "client_cert_chain": [] if not certificate else [ssl.DER_cert_to_PEM_cert(certificate)],
        "client_cert_name": name,
        "client_cert_error": None,
        "tls_version": ssl.TLSVersion[version.replace(".", "_")].value,
        "cipher_suite": _cipher_suites()[cipher[0]],
    }


@cache
def _cipher_suites() -> dict[str, int]:
    """The numbers of cipher suites, as IANA has them, by OpenSSL's names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:COMPLEMENTOFALL")
    return {cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()}
