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
   what comes behind it. So where later requests go elsewhere anyway (``keeps_goaway``) it does not
   hear of GOAWAY, unless answers are missing at the end of the connection. Each request beyond is
   reset for it, with the code ELSEWHERE, when it has been sent: while it waits to send the rest it
   hears of nothing else. Once no answer is owed, all others go elsewhere; but not if the server let
   none be answered, or that would never end. In other places GOAWAY is passed on at once, and
   nothing that comes behind it.
6. In HTTP/2 only whole frames are passed on: httpcore does nothing with less.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import NamedTuple, Protocol

__all__ = ["ELSEWHERE", "Requests", "requests_of"]

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
_DATA, _HEADERS, _RST_STREAM, _GOAWAY = 0, 1, 3, 7
_END_STREAM, _PADDED, _PRIORITY = 0x01, 0x08, 0x20
_STREAM_MASK = 0x7FFFFFFF

#: Codes of RST_STREAM: RFC 9113, section 7; and one of our own, which no server can know.
_REFUSED_STREAM = 0x7
ELSEWHERE = 0x80000000 | secrets.randbits(31)

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

    def sent(self, data: bytes) -> bytes:
        """Note what is sent. The result is what httpcore is to have for it, or nothing."""

    @property
    def server_leaves(self) -> bool:
        """True if the server answers no other request on this connection."""

    @property
    def server_is_done(self) -> bool:
        """True if it has also answered all that it will, and those that wait go elsewhere."""

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
    server_is_done = False

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

    def sent(self, data: bytes) -> bytes:
        if self.begins(data):
            self._head, self._has_body = data, False
        else:
            self._has_body = True
        return b""

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
        self._unfinished: set[int] = set()  # streams of which more is to be sent
        self._from_server = _Frames()
        self._keeps_goaway = keeps_goaway
        self._last = _STREAM_MASK  # stream that the server may answer
        self._goaway = b""

    @property
    def server_leaves(self) -> bool:
        return bool(self._goaway)

    @property
    def server_is_done(self) -> bool:
        return (
            self._keeps_goaway
            and self.server_leaves
            and self._lets_some_be_answered
            and not self._may_be_sent_twice
            and min(self._unfinished, default=_STREAM_MASK) > self._last
        )

    @property
    def _lets_some_be_answered(self) -> bool:
        return self._has_answered or self._last > 0

    @property
    def may_be_sent_again(self) -> bool:
        return self.server_is_done or (self.may_go_elsewhere and bool(self._may_be_sent_twice))

    @property
    def may_go_elsewhere(self) -> bool:
        return self._has_answered and all(self._may_be_sent_twice.values())

    def begins(self, data: bytes) -> bool:
        return any(frame.kind == _HEADERS for frame in _frames_sent(data))

    def sent(self, data: bytes) -> bytes:
        resets = b""
        for frame in _frames_sent(data):
            if frame.kind == _HEADERS:
                self._unfinished.add(frame.stream)
            if frame.kind == _HEADERS and frame.stream <= self._last:
                is_whole = frame.flags & (_END_STREAM | _PADDED | _PRIORITY) == _END_STREAM
                self._may_be_sent_twice[frame.stream] = is_whole and frame.first == _GET
            elif frame.kind == _RST_STREAM:
                self._may_be_sent_twice.pop(frame.stream, None)
            if frame.ends_stream:
                self._unfinished.discard(frame.stream)
                if frame.stream > self._last:
                    resets += self._reset(frame.stream)
        return resets

    def received(self, data: bytes) -> bytes:
        passed: list[bytes | memoryview] = []
        for frame in self._from_server.of(data):
            if self._goaway and not self._keeps_goaway:
                break
            if frame.kind == _RST_STREAM and frame.stream > self._last:
                continue  # we reset it
            if frame.kind != _GOAWAY:
                self._note(frame)
                passed.append(frame.raw)
                continue
            self._goaway = bytes(frame.raw)
            passed.append(self._forgo(frame) if self._keeps_goaway else frame.raw)
        return b"".join(passed)

    def ended(self) -> bytes:
        return self._goaway

    def _note(self, frame: _Frame) -> None:
        if frame.stream in self._may_be_sent_twice:
            self._may_be_sent_twice[frame.stream] = False
            if frame.ends_stream:
                del self._may_be_sent_twice[frame.stream]
                self._has_answered = True

    def _forgo(self, goaway: _Frame) -> bytes:
        """Reset the requests beyond (rule 5)."""
        self._last = int.from_bytes(goaway.raw[_HEAD_SIZE:][:4]) & _STREAM_MASK
        beyond = [stream for stream in self._may_be_sent_twice if stream > self._last]
        for stream in beyond:
            del self._may_be_sent_twice[stream]
        return b"".join(self._reset(stream) for stream in beyond if stream not in self._unfinished)

    def _reset(self, stream: int) -> bytes:
        code = ELSEWHERE if self._lets_some_be_answered else _REFUSED_STREAM
        return bytes([0, 0, 4, _RST_STREAM, 0]) + stream.to_bytes(4) + code.to_bytes(4)


class _Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    raw: memoryview

    @property
    def first(self) -> int:
        """The first byte of what it carries; -1 if that is nothing."""
        return self.raw[_HEAD_SIZE] if len(self.raw) > _HEAD_SIZE else -1

    @property
    def ends_stream(self) -> bool:
        """True if nothing comes behind it on its stream."""
        if self.kind == _RST_STREAM:
            return True
        return self.kind in (_DATA, _HEADERS) and bool(self.flags & _END_STREAM)


class _Frames:
    """Finds the frames of HTTP/2 in what goes one way."""

    def __init__(self) -> None:
        self._rest = b""  # part of a frame

    def of(self, data: bytes) -> Iterator[_Frame]:
        """Those that end in this data, which follows what was given before (rule 6)."""
        view = memoryview(self._rest + data)
        at = 0
        while at + _HEAD_SIZE <= len(view):
            end = at + _HEAD_SIZE + int.from_bytes(view[at : at + 3])
            if end > len(view):
                break
            stream = int.from_bytes(view[at + 5 : at + _HEAD_SIZE]) & _STREAM_MASK
            yield _Frame(view[at + 3], view[at + 4], stream, view[at:end])
            at = end
        self._rest = bytes(view[at:])


def _frames_sent(data: bytes) -> Iterator[_Frame]:
    return _Frames().of(data.removeprefix(_PREFACE))
