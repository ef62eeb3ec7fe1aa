"""An HTTP/1.1 client on h11, written once for trio and for plain threads.

python examples/h11_client.py [--thread] HOST [TARGET]
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import h11
import trio

import ringtls.blocking

Open = Callable[[str, int], Awaitable[trio.abc.Stream]]


class Response(NamedTuple):
    status: int
    body: bytes


class Client:
    """One connection, for one request after the other."""

    def __init__(self, stream: trio.abc.Stream, host: str) -> None:
        self._stream = stream
        self._host = host
        self._connection = h11.Connection(h11.CLIENT)

    async def get(self, target: str) -> Response:
        if self._connection.our_state is h11.DONE:
            self._connection.start_next_cycle()
        request = h11.Request(method="GET", target=target, headers=[("Host", self._host)])
        head = self._connection.send(request) or b""
        await self._stream.send_all(head + (self._connection.send(h11.EndOfMessage()) or b""))
        status, body = 0, bytearray()
        while self._connection.their_state is not h11.DONE:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(bytes(await self._stream.receive_some()))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
        return Response(status, bytes(body))


async def get(open_stream: Open, host: str, port: int, *targets: str) -> list[Response]:
    """Several targets of one host, over one connection."""
    async with await open_stream(host, port) as stream:
        client = Client(stream, host)
        return [await client.get(target) for target in targets]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--thread", action="store_true", help="without an event loop")
    parser.add_argument("host")
    parser.add_argument("target", nargs="?", default="/")
    args = parser.parse_args()
    arguments = args.host, 443, args.target
    if args.thread:
        (response,) = ringtls.blocking.call(
            get, ringtls.blocking.open_tls_over_tcp_stream, *arguments
        )
    else:
        (response,) = trio.run(get, ringtls.open_tls_over_tcp_stream, *arguments)
    print(response.status, f"{len(response.body)} bytes")


if __name__ == "__main__":
    main()
