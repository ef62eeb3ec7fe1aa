"""An HTTP/2 server on h2 (RFC 9113) that says GOAWAY however a connection ends.

python examples/http2_server.py PORT CERTIFICATE KEY
"""

from __future__ import annotations

import argparse
import ssl
from functools import partial

import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

import ringtls

ANSWER = b"hello\n"


def going_away(http2: H2Connection) -> bytes:
    """GOAWAY, with the last request that was seen."""
    http2.close_connection()
    return http2.data_to_send()


class Connection:
    """One connection: answers its requests."""

    def __init__(self, stream: ringtls.TlsStream) -> None:
        self._stream = stream
        self._http2 = H2Connection(H2Configuration(client_side=False))
        self.answered = 0

    async def start(self) -> None:
        self._http2.initiate_connection()
        await self._stream.send_all(self._http2.data_to_send())
        self._stream.farewell = partial(going_away, self._http2)

    async def go_on(self) -> bool:
        """Take in what comes next. False at the end."""
        data = await self._stream.receive_some()
        for event in self._http2.receive_data(data):
            if isinstance(event, RequestReceived):
                self._answer(event.stream_id)
        await self._stream.send_all(self._http2.data_to_send())
        return bool(data)

    def _answer(self, request: int) -> None:
        headers = [(":status", "200"), ("content-length", str(len(ANSWER)))]
        self._http2.send_headers(request, headers)
        self._http2.send_data(request, ANSWER, end_stream=True)
        self.answered += 1


async def handle(stream: ringtls.TlsStream) -> None:
    async with stream:
        connection = Connection(stream)
        await connection.start()
        while await connection.go_on():
            pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("certificate")
    parser.add_argument("key")
    args = parser.parse_args()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(args.certificate, args.key)
    context.set_alpn_protocols(["h2"])
    trio.run(partial(ringtls.serve_tls_over_tcp, handle, args.port, context))


if __name__ == "__main__":
    main()
