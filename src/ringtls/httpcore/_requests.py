"""Which requests are on their way on a connection of a pool, as its bytes tell.

Rules:

1. A request that met the end of its connection is sent again only if that can do no harm: it is a
   GET, HEAD or OPTIONS without a body (RFC 9110, section 9.2.2; RFC 9112, section 9.3.1), and not
   a byte of its answer has come. In HTTP/2 that must hold for all that are on their way, because
   httpcore has one error for them; and HEAD and OPTIONS are not known from others, because HPACK
   has no number of its own for them (RFC 7541, appendix A).
2. Nothing is sent again on a connection that has answered nothing yet. So there is an end to it
   with a server that ends all connections.
3. A connection may carry something else before HTTP: SOCKS (RFC 1928). That is no request, and what
   comes for it no answer.
4. After the answer to CONNECT, or to a request with Upgrade, a connection of HTTP/1.1 may carry
   anything (RFC 9110, sections 7.8 and 9.3.6). From then on nothing is taken for a request, even if
   it looks like one, and even if the server has declined.
5. What has come with a reset in it is handed over frame by frame: ``_backend``, rule 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import httpcore

__all__ = ["Requests", "may_be_sent_twice", "requests_of"]

#: How a request begins in HTTP/1.1: RFC 9112, section 3.
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.1\r\n")

#: How the head of one begins that may be sent twice; see rule 1.
_MAY_BE_SENT_TWICE = (b"GET ", b"HEAD ", b"OPTIONS ")

#: The headers of one with a body.
_OF_A_BODY = (b"content-length", b"transfer-encoding")

#: The head of one that asks for something else than HTTP; see rule 4.
_ASKS_FOR_ANOTHER = re.compile(rb"\ACONNECT |\r\nUpgrade:", re.IGNORECASE)

#: What a client says first in HTTP/2: RFC 9113, section 3.4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: RFC 9113, sections 4.1 and 6.
_HEAD_SIZE = 9
_DATA, _HEADERS, _RST_STREAM = 0, 1, 3
_END_STREAM, _PADDED, _PRIORITY = 0x01, 0x08, 0x20

#: ":method: GET" as HPACK's static table has it: RFC 7541, section 6.1 and appendix A.
_GET = 0x82


class Requests(Protocol):
    """Those of one connection."""

    @property
    def may_be_sent_again(self) -> bool:
        """True if there are some, and each may be sent again elsewhere."""

    @property
    def may_go_elsewhere(self) -> bool:
        """True if the next one may go elsewhere once the connection has ended: nothing is lost."""

    @property
    def are_at_once(self) -> bool:
        """True if there may be several, and the server may speak without having been asked."""

    def begins(self, data: bytes) -> bool:
        """True if a request begins with what is to be sent now."""

    def sent(self, data: bytes) -> None:
        """Note what is sent."""

    def received(self, data: bytes) -> list[bytes]:
        """Note what has come. The value is the same, in the pieces that it is handed over in."""


def may_be_sent_twice(request: httpcore.Request) -> bool:
    """Rule 1."""
    has_body = any(name.lower() in _OF_A_BODY for name, _ in request.headers)
    return request.method + b" " in _MAY_BE_SENT_TWICE and not has_body


def requests_of(data: bytes) -> Requests | None:
    """Those of a connection on which the client says this, if HTTP begins with it (rule 3)."""
    if data.startswith(_PREFACE):
        return _Http2()
    return _Http1() if _REQUEST_LINE.match(data) else None


class _Http1:
    """One after the other."""

    are_at_once = False

    def __init__(self) -> None:
        self._has_answered = False
        self._is_over = False  # rule 4
        self._head: bytes | None = None  # of the request that nothing has come for yet
        self._has_body = False

    @property
    def may_be_sent_again(self) -> bool:
        return (
            self._has_answered
            and self._head is not None
            and self._head.startswith(_MAY_BE_SENT_TWICE)
            and not self._has_body
        )

    @property
    def may_go_elsewhere(self) -> bool:
        return self._has_answered

    def begins(self, data: bytes) -> bool:
        return not self._is_over and self._head is None and _REQUEST_LINE.match(data) is not None

    def sent(self, data: bytes) -> None:
        if self.begins(data):
            self._head, self._has_body = data, False
        else:
            self._has_body = True

    def received(self, data: bytes) -> list[bytes]:
        if self._head is not None and _ASKS_FOR_ANOTHER.search(self._head):
            self._is_over = True
        self._has_answered = True
        self._head = None
        return [data]


class _Http2:
    """Several at once. A client's frames are sent whole, a server's come in any pieces."""

    are_at_once = True

    def __init__(self) -> None:
        self._has_answered = False
        self._may_be_sent_twice: dict[int, bool] = {}  # by the streams that are open
        self._from_server = _Frames()

    @property
    def may_be_sent_again(self) -> bool:
        return self.may_go_elsewhere and bool(self._may_be_sent_twice)

    @property
    def may_go_elsewhere(self) -> bool:
        return self._has_answered and all(self._may_be_sent_twice.values())

    def begins(self, data: bytes) -> bool:
        return any(frame.kind == _HEADERS for frame in _frames_sent(data))

    def sent(self, data: bytes) -> None:
        for frame in _frames_sent(data):
            if frame.kind == _HEADERS:
                is_whole = frame.flags & (_END_STREAM | _PADDED | _PRIORITY) == _END_STREAM
                self._may_be_sent_twice[frame.stream] = is_whole and frame.first == _GET
            elif frame.kind == _RST_STREAM:
                self._may_be_sent_twice.pop(frame.stream, None)

    def received(self, data: bytes) -> list[bytes]:
        frames = list(self._from_server.of(data))
        for frame in frames:
            if frame.stream in self._may_be_sent_twice:
                self._may_be_sent_twice[frame.stream] = False
                has_ended = frame.kind in (_DATA, _HEADERS) and frame.flags & _END_STREAM
                if has_ended or frame.kind == _RST_STREAM:
                    del self._may_be_sent_twice[frame.stream]
                    self._has_answered = True
        if all(frame.kind != _RST_STREAM for frame in frames):
            return [data]
        cuts = [0, *(frame.at for frame in frames if frame.at > 0), len(data)]
        return [data[begin:end] for begin, end in pairwise(cuts)]


class _Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    first: int  # byte of what it carries, if that is known
    at: int  # where it begins in the data; less than 0 if that was before


class _Frames:
    """Finds the frames of HTTP/2 in what goes one way."""

    def __init__(self) -> None:
        self._skip = 0  # so much comes before the next one
        self._rest = b""  # part of a head

    def of(self, data: bytes) -> Iterator[_Frame]:
        """Those whose head ends in this data, which follows what was given before."""
        before = len(self._rest)
        data = self._rest + data
        at = self._skip
        while at + _HEAD_SIZE <= len(data):
            length = int.from_bytes(data[at : at + 3])
            stream = int.from_bytes(data[at + 5 : at + _HEAD_SIZE]) & 0x7FFFFFFF
            first = data[at + _HEAD_SIZE] if length and at + _HEAD_SIZE < len(data) else -1
            yield _Frame(data[at + 3], data[at + 4], stream, first, at - before)
            at += _HEAD_SIZE + length
        self._skip = max(at - len(data), 0)
        self._rest = data[at:]


def _frames_sent(data: bytes) -> Iterator[_Frame]:
    return _Frames().of(data.removeprefix(_PREFACE))
