"""The handler of the servers whose streams are trio's: the same code for each of them."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter

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

__all__ = ["handle"]


async def handle(counters: Counters, stream: trio.abc.Stream) -> None:
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
