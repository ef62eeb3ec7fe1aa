"""The heads of requests, read from a connection. httptools (llhttp) parses them, strictly.

Rules (RFC 9112):

1. The parser is given one head at a time, up to its empty line. So what it makes of a head depends
   on nothing before or behind it.
2. A head is at most HEAD_LIMIT bytes long, empty lines before it included, its first line at most
   LINE_LIMIT, and it has at most FIELDS_LIMIT headers of different names.
3. What two programs could understand in two ways is refused, and the connection ended: both
   Content-Length and Transfer-Encoding, or two of a kind; a bare LF or CR; folded lines; white
   space before a colon; more or less than one Host; another version than 1.1 and 1.0; control
   characters. Empty lines before a request are ignored (section 2.2), and begin none.
4. A request with a body is the last of its connection: the body is not read.
5. The same bytes are the same request. So a head that came before, whole and alone but for empty
   lines, is looked up instead of parsed (``Known``), as long as it is remembered.
"""

from __future__ import annotations

import http
import re
from functools import lru_cache

import httptools

__all__ = ["BadRequestError", "Known", "Request", "RequestReader"]

#: Bytes.
HEAD_LIMIT = 16 * 1024
LINE_LIMIT = 8 * 1024

FIELDS_LIMIT = 100

#: Rule 5: heads, and bytes of each.
KNOWN_HEADS = 1024
KNOWN_LENGTH = 2048

#: Headers by which the answer to a request for a file is not always the same. (Where there are
#: several codings, so is Accept-Encoding.)
_DECISIVE = frozenset(
    {
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
    }
)

#: The beginning of a head: a method that there might be (RFC 9110, section 9.1), as nginx has it,
#: and the rest of the first line.
_BEGINNING = re.compile(rb"[\r\n]*(?:([A-Z_-]+) )?([^\r\n]{0,%d})" % LINE_LIMIT)

_HOST = re.compile(rb"(\[[0-9A-Za-z:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]*)?")

END_OF_HEAD = b"\r\n\r\n"


class BadRequestError(Exception):
    """What came is not a request that can be answered; the connection is to be ended.

    Attributes:
      request: what is known of it.
    """

    def __init__(self, request: Request, status: http.HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.request = request
        self.status = status


class Request:
    """The head of a request.

    Attributes:
      headers: by names in lower case; those with the same name are joined by commas.
      version: "1.1" or "1.0"; "" of what is not read, of which ``target`` is what came of the first
        line, behind the method.
      keep_alive: whether another request may follow.
      has_body: see rule 4.
      is_plain: all such requests for a file are answered the same, and another may follow.
    """

    __slots__ = ("has_body", "headers", "is_plain", "keep_alive", "method", "target", "version")

    def __init__(self, target: bytes) -> None:
        self.target = target
        self.headers: dict[bytes, bytes] = {}
        self.method = b""
        self.version = ""
        self.keep_alive = False
        self.has_body = False
        self.is_plain = False


class Known(dict[bytes, Request]):
    """Requests by their heads (rule 5). It begins anew when it is full."""

    def remember(self, head: bytes, request: Request) -> None:
        if len(head) <= KNOWN_LENGTH and not request.has_body and request.keep_alive:
            if len(self) >= KNOWN_HEADS:
                self.clear()
            self[head] = request


class RequestReader:
    """Turns what is received into requests."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._unparsed = b""
        self._head = b""  # what the parser has of it
        self._target = b""
        self._request: Request | None = None
        self._is_complete = False

    @property
    def has_begun(self) -> bool:
        """Whether something but empty lines has come behind the last request."""
        return bool((self._head + self._unparsed).lstrip(b"\r\n"))

    @property
    def unread(self) -> Request:
        """What is known of a request that has not come whole, or that is none."""
        match = _BEGINNING.match(self._head)
        assert match is not None
        method, target = match.groups(b"")
        request = Request(target)
        request.method = method
        return request

    def feed(self, data: bytes) -> Request | None:
        """Take in what was received; and ``next``."""
        self._unparsed += data
        return self.next()

    def next(self) -> Request | None:
        """The next request that has come whole.

        Raises:
          BadRequestError: there can be none on this connection.
        """
        while self._unparsed:
            data, self._unparsed = self._unparsed, b""
            stop = _stop_of_head(self._head, data)
            if stop < len(data):
                data, self._unparsed = data[:stop], data[stop:]
            self._head += data
            if len(self._head) > HEAD_LIMIT:
                raise self._too_long()
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade:  # it is not done, and what follows is HTTP
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                raise self._bad(error) from None
            if self._is_complete:
                return self._take()
        return None

    def _take(self) -> Request:
        request, self._request = self._request, None
        assert request is not None
        head, self._head = self._head, b""
        self._is_complete = False
        self._check(request, head)
        return request

    def _check(self, request: Request, head: bytes) -> None:
        """What the parser has let pass (rule 3)."""
        if head.startswith((b"\r", b"\n")):
            head = head.lstrip(b"\r\n")
        end = head.index(b"\r\n")
        if head[end - 9 : end - 1] != b" HTTP/1." or request.version not in ("1.1", "1.0"):
            status = http.HTTPStatus.BAD_REQUEST
            if head[end - 9 : end - 3] == b" HTTP/" and request.version != "0.9":
                status = http.HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
            reason = "the version is neither HTTP/1.1 nor HTTP/1.0"
            raise BadRequestError(request, status, reason)
        if end > LINE_LIMIT:
            status = http.HTTPStatus.REQUEST_URI_TOO_LONG
            raise BadRequestError(request, status, "the first line is too long")
        headers = request.headers
        if len(headers) > FIELDS_LIMIT:
            status = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            reason = f"there are more than {FIELDS_LIMIT} headers"
            raise BadRequestError(request, status, reason)
        refused = http.HTTPStatus.BAD_REQUEST
        host = headers.get(b"host")
        if host is None:
            if request.version == "1.1":
                raise BadRequestError(request, refused, "there is no Host")
        elif not _is_host(host):
            raise BadRequestError(request, refused, "Host is none, or more than one")
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            if request.version == "1.0":
                raise BadRequestError(request, refused, "HTTP/1.0 has no Transfer-Encoding")
            if coding.lower() != b"chunked":
                reason = "another Transfer-Encoding than chunked"
                raise BadRequestError(request, http.HTTPStatus.NOT_IMPLEMENTED, reason)
            request.has_body = True
        elif b"content-length" in headers:
            request.has_body = headers[b"content-length"].strip(b"0 \t") != b""  # digits
        if request.method == b"CONNECT":  # what follows is meant for somebody else
            request.has_body = True
        request.is_plain = (
            request.method == b"GET"
            and request.version == "1.1"
            and request.keep_alive
            and not request.has_body
            and _DECISIVE.isdisjoint(headers)
        )

    def _too_long(self) -> BadRequestError:
        if b"\r\n" in self._head.lstrip(b"\r\n"):
            status = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        else:
            status = http.HTTPStatus.REQUEST_URI_TOO_LONG
        return BadRequestError(self.unread, status, f"the head is longer than {HEAD_LIMIT} bytes")

    def _bad(self, error: httptools.HttpParserError) -> BadRequestError:
        request, status = self.unread, http.HTTPStatus.BAD_REQUEST
        if isinstance(error, httptools.HttpParserInvalidMethodError) and request.method:
            status = http.HTTPStatus.METHOD_NOT_ALLOWED
        return BadRequestError(request, status, str(error))

    # What the parser calls

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request is None:
            request = self._begin()
        name = name.lower()
        if name in request.headers:
            value = request.headers[name] + b", " + value
        request.headers[name] = value

    def on_headers_complete(self) -> None:
        request = self._request
        if request is None:
            request = self._begin()
        parser = self._parser
        request.method = parser.get_method()
        request.version = parser.get_http_version()
        request.keep_alive = parser.should_keep_alive() and not _closes(request)
        self._is_complete = True

    def _begin(self) -> Request:
        self._request = request = Request(self._target)
        self._target = b""
        return request


def _closes(request: Request) -> bool:
    """True if "close" is among what the client says of the connection: that counts before
    "keep-alive" (section 9.3), in HTTP/1.0 too."""
    options = request.headers.get(b"connection", b"").split(b",")
    return any(option.strip(b" \t").lower() == b"close" for option in options)


def _stop_of_head(before: bytes, data: bytes) -> int:
    """How much of ``data`` belongs to the head that has begun before it."""
    if before:
        before = before[-3:]
        across = (before + data[:3]).find(END_OF_HEAD)
        if across >= 0:
            return across + len(END_OF_HEAD) - len(before)
    end = data.find(END_OF_HEAD)
    return len(data) if end < 0 else end + len(END_OF_HEAD)


@lru_cache(maxsize=256)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None
