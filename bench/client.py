"""A client that asks once: to see what a server speaks, and to have it close connections."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from .server import HOST, Server

__all__ = ["TIMEOUT", "Answer", "ask", "client_context"]

#: Seconds.
TIMEOUT = 30

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """What is known after a request.

    Attributes:
      version, cipher: of TLS.
      size: bytes of the response with its head.
      resumed: the handshake resumed a session.
      session: for the next request.
    """

    version: str | None
    cipher: str | None
    size: int
    resumed: bool | None
    session: ssl.SSLSession | None


def client_context(server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(server.certificate.ca))


def ask(server: Server, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Answer:
    """Make one request on a connection of its own, which the server ends, and we then do too.

    Raises:
      OSError: the connection failed or did not end properly.
    """
    with (
        socket.create_connection((HOST, server.port), timeout=TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname="localhost", session=session) as tls,
    ):
        tls.sendall(REQUEST)
        size = 0
        while received := tls.recv(65536):
            size += len(received)
        cipher = tls.cipher()
        answer = Answer(
            tls.version(), cipher[0] if cipher else None, size, tls.session_reused, tls.session
        )
        tls.unwrap()
    return answer
