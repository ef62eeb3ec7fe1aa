"""Plays the cases through a terminator, and counts what comes of them."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from ...certificates import client_context, make_certificate
from .cases import Case, Exchange
from .peers import Backend, Received, Saw, TlsClient, bound_socket, receive
from .terminators import Setting, Terminator, running

__all__ = ["Running", "started"]

#: A client begins with the number of its exchange, in so many bytes. The backend, if it is there,
#: says GO: then the connection is one.
NUMBER_SIZE = 4
GO = b"."


@dataclass(frozen=True)
class Running:
    """A terminator that runs before a scripted backend."""

    port: int
    backend: Backend
    context: ssl.SSLContext
    pid: int

    def count(
        self,
        case: Case,
        connections: int,
        at_once: int,
        pause: Callable[[], object] = lambda: None,
    ) -> Counter[str]:
        """What came of so many connections, by its word.

        Args:
          pause: see TlsClient.
        """
        exchanges = [Exchange() for _ in range(connections)]

        def serve(sock: socket.socket) -> None:
            assert case.serve is not None
            with suppress(OSError, EOFError):  # as a script has it, or a connection of nobody's
                exchange = exchanges[int.from_bytes(receive(sock, NUMBER_SIZE))]
                sock.sendall(GO)
                exchange.backend = case.serve(sock)

        def converse(number: int) -> None:
            exchange = exchanges[number]
            try:
                client = TlsClient(self.port, self.context, pause)
                with client.sock:
                    client.send(number.to_bytes(NUMBER_SIZE))
                    if case.serve is not None:
                        client.receive_byte()
                    exchange.client = case.converse(client)
            except ConnectionError:
                exchange.client = Received(b"", Saw.RESET)
            except EOFError:
                exchange.client = Received(b"", Saw.FIN)

        there = nullcontext() if case.serve is None else self.backend.playing(serve)
        with there, ThreadPoolExecutor(at_once) as pool:
            list(pool.map(converse, range(connections)))
        return Counter(map(case.tell, exchanges))


@contextmanager
def started(terminator: Terminator) -> Iterator[Running]:
    """Start one, with a certificate that is kept nowhere, and end it.

    Raises:
      TerminatorError
    """
    with tempfile.TemporaryDirectory(prefix="ringtls-demo-") as name:
        directory = Path(name)
        made = make_certificate(directory)
        both = directory / "both.pem"
        both.write_bytes(made.certificate.read_bytes() + made.key.read_bytes())
        context = client_context(made.ca)
        with closing(Backend()) as backend, bound_socket() as bound:
            port = bound.getsockname()[1]
            setting = Setting(directory, made.certificate, made.key, both, port, backend.port)
            with running(terminator, setting) as process:
                yield Running(port, backend, context, process.pid)
