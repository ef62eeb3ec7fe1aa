"""The servers whose streams are trio's: the same code for each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any

import trio

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

__all__ = ["serve"]


async def serve(serve_over_tcp: Callable[..., Awaitable[Any]]) -> None:
    """Serve with a function of the shape of trio.serve_ssl_over_tcp."""
    setup = set_up()
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            partial(
                serve_over_tcp,
                partial(_handle, setup.counters),
                0,
                setup.context,
                host=HOST,
                backlog=BACKLOG,
            )
        )
        announce(listener.transport_listener.socket.getsockname()[1])


async def _handle(counters: Counters, stream: trio.abc.Stream) -> None:
    counters.count_opened()
    with suppress(trio.BrokenResourceError):  # the client's doing
        await _serve(counters, stream)
    began = perf_counter()
    with suppress(trio.BrokenResourceError):
        await stream.aclose()
    counters.count_closed(perf_counter() - began)


async def _serve(counters: Counters, stream: trio.abc.Stream) -> None:
    received = b""
    while True:
        while END_OF_HEAD not in received:
            data = await stream.receive_some()
            if not data:
                return
            received += data
        head, _, received = received.partition(END_OF_HEAD)
        request = parse(head)
        if request.body_size:
            left = request.body_size - len(received)
            received = b""
            while left:
                left -= len(await stream.receive_some())
        if request.is_bulk:
            await stream.send_all(BULK_HEAD)
            for _ in range(CHUNKS):
                await stream.send_all(CHUNK)
        else:
            await stream.send_all(RESPONSE_AND_CLOSE if request.closes else RESPONSE)
        counters.count_request()
        if request.closes:
            return
