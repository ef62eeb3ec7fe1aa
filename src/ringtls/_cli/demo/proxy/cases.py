"""What can happen on the two sides of a TLS terminator, and what it must make of that.

A case is a script for the client and one for the backend. Its outcome is a word, which follows from
what both have seen.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from .peers import Received, Saw, TlsClient, read_to_end, receive, reset

__all__ = ["CASES", "Case", "Exchange"]

#: Bytes of an answer, of one that comes early (so many fit into a client's buffer, which does not
#: read before its upload is over), and of the upload that goes on meanwhile.
ANSWER = 256 * 1024
EARLY_ANSWER = 16 * 1024
UPLOAD = 256 * 1024
LONG_UPLOAD = 4 * 1024 * 1024

OK = "ok"
NO_ANSWER = "answer lost"
NO_UPLOAD = "upload lost"


def _content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


_ANSWER, _UPLOAD, _LONG_UPLOAD = (_content(size) for size in (ANSWER, UPLOAD, LONG_UPLOAD))


@dataclass
class Exchange:
    """One connection, as both sides saw it."""

    client: Received = field(default_factory=lambda: Received(b"", Saw.NOTHING))
    backend: Received = field(default_factory=lambda: Received(b"", Saw.NOTHING))


@dataclass(frozen=True)
class Case:
    """Something that happens.

    Attributes:
      converse: what the client does, and sees.
      serve: what the backend does, and sees; None: it is not there.
      tell: what came of it, in a word.
      right: the word for what must come of it.
    """

    name: str
    converse: Callable[[TlsClient], Received]
    serve: Callable[[socket.socket], Received] | None
    tell: Callable[[Exchange], str]
    right: str


# What clients do


def _only_read(client: TlsClient) -> Received:
    return client.read_to_end()


def _half_close(client: TlsClient) -> Received:
    client.send_close_notify()
    return client.read_to_end()


def _truncate(client: TlsClient) -> Received:
    client.send(_UPLOAD)
    client.truncate()
    return client.read_to_end()


def _reset(client: TlsClient) -> Received:
    client.send(_UPLOAD)
    reset(client.sock)
    return Received(b"", Saw.NOTHING)


def _upload_after_the_answer(client: TlsClient) -> Received:
    received = client.read_to_end()
    with suppress(OSError):
        client.send(_UPLOAD)
        client.send_close_notify()
    return received


def _upload(client: TlsClient) -> Received:
    with suppress(OSError):  # the backend may want no more of it
        client.send(_LONG_UPLOAD)
    return client.read_to_end()


# What backends do


def _answer(sock: socket.socket) -> Received:
    sock.sendall(_ANSWER)
    sock.shutdown(socket.SHUT_WR)
    return read_to_end(sock)


def _crash(sock: socket.socket) -> Received:
    sock.sendall(_ANSWER[: ANSWER // 2])
    reset(sock)
    return Received(b"", Saw.NOTHING)


def _answer_after_the_request(sock: socket.socket) -> Received:
    received = read_to_end(sock)
    with suppress(OSError):
        sock.sendall(_ANSWER)
    return received


def _answer_early(sock: socket.socket) -> Received:
    receive(sock, UPLOAD)
    sock.sendall(_ANSWER[:EARLY_ANSWER])
    sock.shutdown(socket.SHUT_WR)
    sock.close()  # over unread input: RST follows
    return Received(b"", Saw.NOTHING)


# What came of it


def _clients_end(exchange: Exchange) -> str:
    if not _ANSWER.startswith(exchange.client.data):
        return Saw.GARBAGE.value
    return "truncated" if exchange.client.end is Saw.FIN else exchange.client.end.value


def _answer_and_end(exchange: Exchange) -> str:
    return _clients_end(exchange) if exchange.client.data == _ANSWER else NO_ANSWER


def _backends_end(exchange: Exchange) -> str:
    if not _UPLOAD.startswith(exchange.backend.data):
        return Saw.GARBAGE.value
    return exchange.backend.end.value


def _answer_to_half_close(exchange: Exchange) -> str:
    if exchange.backend.end is not Saw.FIN:
        return f"backend: {exchange.backend.end.value}"
    whole = exchange.client == Received(_ANSWER, Saw.CLOSE_NOTIFY)
    return OK if whole else NO_ANSWER


def _whole_upload(exchange: Exchange) -> str:
    return OK if exchange.backend == Received(_UPLOAD, Saw.FIN) else NO_UPLOAD


def _whole_answer(exchange: Exchange) -> str:
    return OK if exchange.client.data == _ANSWER[:EARLY_ANSWER] else NO_ANSWER


CASES = (
    Case("backend ends (FIN)", _only_read, _answer, _answer_and_end, Saw.CLOSE_NOTIFY.value),
    Case("backend crashes in mid-answer", _only_read, _crash, _clients_end, Saw.RESET.value),
    Case("backend is not there", _only_read, None, _clients_end, Saw.RESET.value),
    Case(
        "client half-closes, then reads",
        _half_close,
        _answer_after_the_request,
        _answer_to_half_close,
        OK,
    ),
    Case("client's upload is truncated", _truncate, read_to_end, _backends_end, Saw.RESET.value),
    Case("client resets", _reset, read_to_end, _backends_end, Saw.RESET.value),
    Case("backend half-closes, then reads", _upload_after_the_answer, _answer, _whole_upload, OK),
    Case("backend answers amid an upload", _upload, _answer_early, _whole_answer, OK),
)
