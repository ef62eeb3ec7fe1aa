"""The server on asyncio's streams, for whichever event loop runs it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from time import perf_counter

from ..counters import Counters
from .http import (
    BULK_HEAD,
    CHUNK,
    CHUNKS,
    END_OF_HEAD,
    RESPONSE,
    RESPONSE_AND_CLOSE,
    parse,
)
from .start import BACKLOG, HOST, announce, set_up

__all__ = ["main"]

READ_SIZE = 64 * 1024


async def main() -> None:
    setup = set_up()
    server = await asyncio.start_server(
        partial(_handle, setup.counters), HOST, 0, ssl=setup.context, backlog=BACKLOG
    )
    async with server:
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()


async def _handle(
    counters: Counters, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    counters.count_opened()
    with suppress(OSError):  # the client's doing; ssl.SSLError is one
        await _serve(counters, reader, writer)
    began = perf_counter()
    with suppress(OSError):
        writer.close()
        await writer.wait_closed()
    counters.count_closed(perf_counter() - began)


async def _serve(
    counters: Counters, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    received = b""
    while True:
        while END_OF_HEAD not in received:
            data = await reader.read(READ_SIZE)
            if not data:
                return
            received += data
        head, _, received = received.partition(END_OF_HEAD)
        request = parse(head)
        if request.body_size:
            left = request.body_size - len(received)
            received = b""
            while left:
                left -= len(await reader.read(READ_SIZE))
        if request.is_bulk:
            writer.write(BULK_HEAD)
            for _ in range(CHUNKS):
                writer.write(CHUNK)
                await writer.drain()
        else:
            writer.write(RESPONSE_AND_CLOSE if request.closes else RESPONSE)
            await writer.drain()
        counters.count_request()
        if request.closes:
            return


if __name__ == "__main__":
    asyncio.run(main())
