"""How a connection ends in the eyes of its peer: a stock blocking client of the stdlib's ssl.

The client reads until the connection is over, with ``suppress_ragged_eofs=False``. What it then
knows is one of these:

1. clean: close_notify came, and then the TCP connection's FIN.
2. truncated: FIN without close_notify. The client can't tell that from an attacker's FIN
   (RFC 8446, section 6.1).
3. reset: RST, while reading, while sending, or after close_notify.
4. timed out: nothing happened for a while.
5. corrupt: TLS failed otherwise, or something came after close_notify.
"""

from __future__ import annotations

import enum
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["TIMEOUT", "End", "Observation", "observe_end"]

#: Seconds that the client waits for anything.
TIMEOUT = 10.0

#: The client's receive buffer, fixed so that a client which does not read soon stalls its peer.
RECEIVE_BUFFER = 64 * 1024

#: The state of a socket that was reset (enum in the kernel's tcp_states.h).
TCP_CLOSE = 7


class End(enum.Enum):
    CLEAN = "clean"
    TRUNCATED = "truncated"
    RESET = "reset"
    TIMED_OUT = "timed out"
    CORRUPT = "corrupt"


@dataclass(frozen=True)
class Observation:
    """How a connection ended, and all that was received before."""

    end: End
    received: bytes


def observe_end(
    address: tuple[str, int],
    context: ssl.SSLContext,
    converse: Callable[[ssl.SSLSocket], object],
    *,
    timeout: float = TIMEOUT,
) -> Observation:
    """Connect to a TLS server of the name localhost, and read until the end.

    Args:
      converse: what the client does before it reads.
    """
    received = bytearray()
    with _client(context, timeout) as client:
        try:
            client.connect(address)
            converse(client)
            while data := client.recv(65536):
                received += data
            with socket.socket(fileno=client.detach()) as below:
                below.settimeout(timeout)
                end = End.CORRUPT if below.recv(1) else End.CLEAN
        except OSError as error:
            end = _end_by(error, client)
    return Observation(end, bytes(received))


def _client(context: ssl.SSLContext, timeout: float) -> ssl.SSLSocket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    client.settimeout(timeout)
    return context.wrap_socket(client, server_hostname="localhost", suppress_ragged_eofs=False)


def _end_by(error: OSError, client: ssl.SSLSocket) -> End:
    """The end that an error means.

    Raises:
      OSError: it is none of those that a peer can cause.
    """
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return End.RESET
    if isinstance(error, ssl.SSLEOFError):
        return End.RESET if _hides_reset(error, client) else End.TRUNCATED
    if isinstance(error, TimeoutError):
        return End.TIMED_OUT
    if isinstance(error, ssl.SSLError):
        # Some builds of Python do not make an SSLEOFError of it.
        ended = error.reason == "UNEXPECTED_EOF_WHILE_READING"
        return End.TRUNCATED if ended else End.CORRUPT
    raise error


def _hides_reset(error: ssl.SSLEOFError, client: ssl.SSLSocket) -> bool:
    """True if a failed system call is reported as an end of input.

    The ssl module does so in some versions of Python, because SSL_read_ex and SSL_write_ex
    return 0 in both cases. A real end has a reason (OpenSSL 3), and leaves the socket in the
    state CLOSE_WAIT; RST leaves it in the state CLOSE.
    """
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return error.reason is None and info[0] == TCP_CLOSE
