"""A protocol without streams and tasks, on uvloop's event loop."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import cast

import uvloop

from ..counters import Counters
from .http import (
    BULK_HEAD,
    CHUNK,
    CHUNKS,
    END_OF_HEAD,
    RESPONSE,
    RESPONSE_AND_CLOSE,
    Request,
    parse,
)
from .start import BACKLOG, HOST, announce, set_up


class HttpProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._received = b""
        self._request: Request | None = None
        self._body_left = 0
        self._chunks_left = 0
        self._may_write = True
        self._close_began: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._counters.count_opened()
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._body_left:
            self._take_body(len(data))
            return
        received = self._received + data
        while END_OF_HEAD in received:
            head, _, received = received.partition(END_OF_HEAD)
            self._request = request = parse(head)
            if request.body_size:
                self._body_left = request.body_size
                self._take_body(len(received))
                received = b""
            else:
                self._answer(request)
        self._received = received

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        if self._chunks_left:
            self._send_chunks()

    def connection_lost(self, exc: Exception | None) -> None:
        self._chunks_left = 0
        now = perf_counter()
        self._counters.count_closed(now - (self._close_began or now))

    def _take_body(self, size: int) -> None:
        self._body_left -= size
        if not self._body_left and self._request:
            self._answer(self._request)

    def _answer(self, request: Request) -> None:
        if request.is_bulk:
            self._transport.write(BULK_HEAD)
            self._chunks_left = CHUNKS
            self._send_chunks()
            return
        self._transport.write(RESPONSE_AND_CLOSE if request.closes else RESPONSE)
        self._counters.count_request()
        if request.closes:
            self._close_began = perf_counter()
            self._transport.close()

    def _send_chunks(self) -> None:
        while self._chunks_left and self._may_write:
            self._chunks_left -= 1
            self._transport.write(CHUNK)
        if not self._chunks_left:
            self._counters.count_request()


async def main() -> None:
    setup = set_up()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(setup.counters), HOST, 0, ssl=setup.context, backlog=BACKLOG
    )
    async with server:
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()


uvloop.run(main())
