"""register_as_trio, which is for the whole process: so each test has one of its own."""

from __future__ import annotations

import subprocess
import sys

from .conftest import Contexts

PROGRAM = """if True:
    import ssl, sys, trio, ringtls

    async def echo(stream):
        async for data in stream:
            await stream.send_all(data)

    def asked(value, kind):
        assert isinstance(value, kind) is registered
        assert issubclass(type(value), kind) is registered

    async def main():
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(*sys.argv[1:3])
        client = ssl.create_default_context(cafile=sys.argv[3])
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(
                lambda task_status: ringtls.serve_tls_over_tcp(
                    echo, 0, server, host="127.0.0.1", task_status=task_status
                )
            )
            asked(listener, trio.SSLListener)
            asked(listener.transport_listener, trio.SocketListener)
            below = await ringtls.open_tcp_stream("127.0.0.1", listener.port)
            asked(below, trio.SocketStream)
            stream = ringtls.TlsStream(below, client, server_hostname="localhost")
            async with stream:
                asked(stream, trio.SSLStream)
                assert not isinstance(stream, trio.SocketStream)
                assert not isinstance(below, trio.SSLStream)
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
                # what others take
                assert stream._ssl_object.cipher() == stream.cipher()
                assert stream.transport_stream.socket.getpeername()[1] == listener.port
                await stream.send_eof()
                assert await stream.receive_some() == b""
            assert stream.close_outcome is ringtls.CloseOutcome.CLEAN
            # ringtls' own questions have the old answers
            trios = trio.SSLStream(
                await trio.open_tcp_stream("127.0.0.1", listener.port), client,
                server_hostname="localhost",
            )
            assert not isinstance(trios, ringtls.TlsStream)
            await trios.do_handshake()
            await trios.aclose()
            over_trios = ringtls.TlsStream(
                await trio.open_tcp_stream("127.0.0.1", listener.port), client,
                server_hostname="localhost",
            )
            async with over_trios:
                await over_trios.send_all(b"hello")
                assert await over_trios.receive_some() == b"hello"
                assert type(over_trios.transport_stream.socket).__name__ == "StandIn"  # on the ring
            nursery.cancel_scope.cancel()

    for registered in False, True, True:
        if registered:
            ringtls.register_as_trio()
        trio.run(main)
    print("passed")
    """


def test_who_asks_takes_them_for_trios(contexts: Contexts) -> None:
    files = [str(path) for path in (contexts.certificate, contexts.key, contexts.ca)]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *files],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.stdout, result.stderr) == ("passed\n", "")
