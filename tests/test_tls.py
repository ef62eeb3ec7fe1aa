"""TlsStream and TlsListener over the ring."""

from __future__ import annotations

import trio.testing

from ringtls import TlsStream

from .conftest import Contexts
from .streams import clog, handshaken


async def test_trio_check_half_closeable_stream(versioned_contexts: Contexts) -> None:
    async def streams() -> tuple[TlsStream, TlsStream]:
        return await handshaken(versioned_contexts)

    async def clogged() -> tuple[TlsStream, TlsStream]:
        client, server = await handshaken(versioned_contexts, buffer_size=16384)
        for stream in (client, server):
            stream.shutdown_timeout = 0.1  # the check closes them one after the other
        await clog(client)
        await clog(server)
        return client, server

    await trio.testing.check_half_closeable_stream(streams, clogged)
