"""A server in blocking code, with a thread for each client: what comes goes back in capitals.

Ctrl-C ends it. Clients that are there then are served on, until they end or say nothing for
IDLE_TIMEOUT seconds, and every connection ends with close_notify.

    python examples/threaded_server.py PORT CERTIFICATE KEY
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import ssl
from contextlib import suppress

import trio

from ringtls.blocking import SocketStream, TlsStream

IDLE_TIMEOUT = 60.0

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


class Handler(socketserver.BaseRequestHandler):
    """One client, in a thread of its own."""

    request: socket.socket

    def handle(self) -> None:
        self.request.settimeout(IDLE_TIMEOUT)
        try:
            with TlsStream(SocketStream(self.request), context, server_side=True) as stream:
                while data := stream.receive_some():
                    stream.send_all(data.upper())
        except (TimeoutError, trio.BrokenResourceError) as error:
            print(f"{self.client_address}: {error}", flush=True)


def main(port: int, certificate: str, key: str) -> None:
    context.load_cert_chain(certificate, key)
    with socketserver.ThreadingTCPServer(("", port), Handler) as server:
        print(server.server_address[1], flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
        # Leaving the server waits for its threads.


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("certificate")
    parser.add_argument("key")
    arguments = parser.parse_args()
    main(arguments.port, arguments.certificate, arguments.key)
