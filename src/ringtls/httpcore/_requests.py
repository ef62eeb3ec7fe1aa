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
5. A server that says GOAWAY answers the requests up to the one that it names, and has done nothing
   for those beyond (RFC 9113, section 6.8). httpcore takes GOAWAY for the end of all, and fails at
   what comes behind it. So where the requests beyond are seen to anyway (``keeps_goaway``) it does
   not hear of GOAWAY, unless answers are missing at the end of the connection. In other places
   GOAWAY is passed on at once, and nothing that comes behind it.
6. In HTTP/2 only whole frames are passed on: httpcore does nothing with less. One that claims to be
   longer than it may be, and what follows, is passed on as it comes: httpcore refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

__all__ = ["Requests", "requests_of"]

#: How a request begins in HTTP/1.1: RFC 9112, section 3.
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.1\r\n")

#: How the head of one begins that may be sent twice; see rule 1.
_MAY_BE_SENT_TWICE = (b"GET ", b"HEAD ", b"OPTIONS ")

#: The head of one that asks for something else than HTTP; see rule 4.
_ASKS_FOR_ANOTHER = re.compile(rb"\ACONNECT |\r\nUpgrade:", re.IGNORECASE)

#: What a client says first in HTTP/2: RFC 9113, section 3.4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: RFC 9113, sections 4.1 and 6.
_HEAD_SIZE = 9
_DATA, _HEADERS, _RST_STREAM, _GOAWAY, _CONTINUATION = 0, 1, 3, 7, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 0x01, 0x04, 0x08, 0x20
_STREAM_MASK = 0x7FFFFFFF

#: Bytes that a frame carries at most, as no setting of ours lets it have more; and ever.
_MOST_RECEIVED, _MOST = 1 << 14, 1 << 24

#: What is no frame of any kind.
_OUT_OF_ORDER = -1

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
    def server_may_speak(self) -> bool:
        """True if the server may say something without having been asked."""

    def begins(self, data: bytes) -> bool:
        """True if a request begins with what is to be sent now."""

    def sent(self, data: bytes) -> None:
        """Note what is sent."""

    @property
    def server_leaves(self) -> bool:
        """True if the server answers no other request on this connection."""

    @property
    def lets_some_be_answered(self) -> bool:
        """True if the server has answered one on this connection, or will."""

    def refuses(self, stream: int) -> bool:
        """True if the server has said that it did nothing for the request of this stream."""

    def received(self, data: bytes) -> bytes:
        """Note what has come. The result is what httpcore is to have of it now, or nothing."""

    def ended(self) -> bytes:
        """What httpcore is to have at the end of the connection."""


def requests_of(data: bytes, *, keeps_goaway: bool) -> Requests | None:
    """Those of a connection on which the client says this, if HTTP begins with it (rule 3)."""
    if data.startswith(_PREFACE):
        return _Http2(keeps_goaway=keeps_goaway)
    return _Http1() if _REQUEST_LINE.match(data) else None


class _Http1:
    """One after the other."""

    server_may_speak = False
    server_leaves = False
    lets_some_be_answered = True

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

    def refuses(self, stream: int) -> bool:
        return False

    def sent(self, data: bytes) -> None:
        if self.begins(data):
            self._head, self._has_body = data, False
        else:
            self._has_body = True

    def received(self, data: bytes) -> bytes:
        if self._head is not None and _ASKS_FOR_ANOTHER.search(self._head):
            self._is_over = True
        self._has_answered = True
        self._head = None
        return data

    def ended(self) -> bytes:
        return b""


class _Http2:
    """Several at once. A client's frames are sent whole, a server's come in any pieces."""

    server_may_speak = True

    def __init__(self, *, keeps_goaway: bool) -> None:
        self._has_answered = False
        self._may_be_sent_twice: dict[int, bool] = {}  # by the streams that the server may answer
        self._from_server = _Frames(_MOST_RECEIVED)
        self._keeps_goaway = keeps_goaway
        self._last = _STREAM_MASK  # stream that the server may answer
        self._goaway = b""
        self._head_ends_stream = False  # the last that came

    @property
    def server_leaves(self) -> bool:
        return bool(self._goaway)

    @property
    def lets_some_be_answered(self) -> bool:
        return self._has_answered or self._last > 0

    def refuses(self, stream: int) -> bool:
        return stream > self._last

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
            if frame.kind == _HEADERS and not self.refuses(frame.stream):
                is_whole = frame.flags & (_END_STREAM | _PADDED | _PRIORITY) == _END_STREAM
                self._may_be_sent_twice[frame.stream] = is_whole and frame.first == _GET
            elif frame.kind == _RST_STREAM:
                self._may_be_sent_twice.pop(frame.stream, None)

    def received(self, data: bytes) -> bytes:
        passed: list[bytes | memoryview] = []
        for frame in self._from_server.of(data):
            if self._goaway and not self._keeps_goaway:
                break
            if frame.kind == _GOAWAY:
                self._leave(frame)
                if self._keeps_goaway:
                    continue
            if frame.kind == _RST_STREAM and self.refuses(frame.stream):
                continue  # it is told otherwise
            self._note(frame)
            passed.append(frame.raw)
        return b"".join(passed)

    def ended(self) -> bytes:
        return self._goaway

    def _note(self, frame: _Frame) -> None:
        if frame.stream in self._may_be_sent_twice:
            self._may_be_sent_twice[frame.stream] = False
            if self._ends_stream(frame):
                del self._may_be_sent_twice[frame.stream]
                self._has_answered = True

    def _ends_stream(self, frame: _Frame) -> bool:
        """True if nothing comes behind it on its stream; a head may go on in other frames."""
        if frame.kind == _HEADERS:
            self._head_ends_stream = bool(frame.flags & _END_STREAM)
        if frame.kind in (_HEADERS, _CONTINUATION):
            return self._head_ends_stream and bool(frame.flags & _END_HEADERS)
        if frame.kind == _DATA:
            return bool(frame.flags & _END_STREAM)
        return frame.kind == _RST_STREAM

    def _leave(self, goaway: _Frame) -> None:
        self._goaway = bytes(goaway.raw)
        self._last = int.from_bytes(goaway.raw[_HEAD_SIZE:][:4]) & _STREAM_MASK
        for stream in [stream for stream in self._may_be_sent_twice if self.refuses(stream)]:
            del self._may_be_sent_twice[stream]


class _Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    raw: memoryview

    @property
    def first(self) -> int:
        """The first byte of what it carries; -1 if that is nothing."""
        return self.raw[_HEAD_SIZE] if len(self.raw) > _HEAD_SIZE else -1


class _Frames:
    """Finds the frames of HTTP/2 in what goes one way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = b""  # part of a frame
        self._is_in_order = True

    def of(self, data: bytes) -> Iterator[_Frame]:
        """Those that end in this data, which follows what was given before (rule 6)."""
        view = memoryview(self._rest + data)
        at = 0
        while self._is_in_order and at + _HEAD_SIZE <= len(view):
            size = int.from_bytes(view[at : at + 3])
            if size > self._most:
                self._is_in_order = False
                break
            end = at + _HEAD_SIZE + size
            if end > len(view):
                break
            stream = int.from_bytes(view[at + 5 : at + _HEAD_SIZE]) & _STREAM_MASK
            yield _Frame(view[at + 3], view[at + 4], stream, view[at:end])
            at = end
        if not self._is_in_order:
            yield _Frame(_OUT_OF_ORDER, 0, 0, view[at:])
            at = len(view)
        self._rest = bytes(view[at:])


def _frames_sent(data: bytes) -> Iterator[_Frame]:
    return _Frames(_MOST).of(data.removeprefix(_PREFACE))
