"""What docs/differences-from-trio.md says of WebSocket libraries, as it says it.

For script/test-frameworks: these libraries are not among what the other tests need.
"""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio

import ringtls
from ringtls._cli.certificates import make_certificate, server_context

pytestmark = pytest.mark.trio


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    made = make_certificate(tmp_path_factory.mktemp("certificates"))
    client = ssl.create_default_context(cafile=str(made.ca))
    return server_context(made.certificate, made.key), client


async def test_trio_websocket(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    trio_websocket: Any = pytest.importorskip("trio_websocket")
    server_side, client_side = contexts
    ringtls.register_as_trio()

    async def echo(request: Any) -> None:
        connection = await request.accept()
        await connection.send_message(await connection.get_message())

    listeners = await ringtls.open_tls_over_tcp_listeners(0, server_side, host="127.0.0.1")
    server = trio_websocket.WebSocketServer(echo, listeners)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: server.run(task_status=task_status))
        assert server.port == listeners[0].port
        stream = await ringtls.open_tls_over_tcp_stream(
            "localhost", server.port, ssl_context=client_side
        )
        async with stream:
            connection = await trio_websocket.wrap_client_stream(nursery, stream, "localhost", "/")
            assert connection.remote.port == server.port
            await connection.send_message("hello")
            assert await connection.get_message() == "hello"
            await connection.aclose()
        assert stream.close_outcome is ringtls.CloseOutcome.CLEAN
        nursery.cancel_scope.cancel()


async def test_websockets(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    client: Any = pytest.importorskip("websockets.trio.client")
    server: Any = pytest.importorskip("websockets.trio.server")
    server_side, client_side = contexts
    ringtls.register_as_trio()

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    listeners = await ringtls.open_tls_over_tcp_listeners(0, server_side, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: server.serve(echo, listeners=listeners, task_status=task_status)
        )
        port = listeners[0].port
        stream = await ringtls.open_tls_over_tcp_stream("localhost", port, ssl_context=client_side)
        async with client.connect(f"ws://localhost:{port}", stream=stream) as connection:
            await connection.send("hello")
            assert await connection.recv() == "hello"
            assert connection.remote_address[1] == port
        assert stream.close_outcome is ringtls.CloseOutcome.CLEAN
        nursery.cancel_scope.cancel()
