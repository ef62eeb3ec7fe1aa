"""What is answered to a request: the fields of its head, and from where its body comes.

RFC 9110 for methods, statuses, conditions (section 13), ranges (section 14) and codings (section
12.5.3). Ranges are single. In If-Range only an ETag counts: a file may change twice within the
second that a date says, so a date is no strong validator (sections 13.1.5 and 8.8.2.2).

Nothing here does I/O or knows of connections; the caller adds what belongs to one.
"""

from __future__ import annotations

import datetime
import http
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .files import Found, Page, Representation
from .requests import Request

__all__ = [
    "Response",
    "error_response",
    "page_response",
    "parse_date",
    "parse_range",
    "respond",
]

#: The forms that a date may have (RFC 9110, section 5.6.7): the one in use, and two obsolete ones.
_OF_RFC_850 = "%A, %d-%b-%y %H:%M:%S GMT"
_DATES = ("%a, %d %b %Y %H:%M:%S GMT", _OF_RFC_850, "%a %b %d %H:%M:%S %Y")

#: Nobody's files are larger than what nineteen digits can say.
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.IGNORECASE)

_NO_WEIGHT = re.compile(r"q=0(\.0{0,3})?", re.IGNORECASE)


@dataclass(slots=True)
class Response:
    """A response to GET; one to HEAD is the same without the body.

    Attributes:
      fields: lines of the head.
      body: what is sent after the head; of a file, ``length`` bytes from ``start`` on.
      sent: how much of it was.
    """

    status: http.HTTPStatus
    fields: bytes
    body: bytes | Representation = b""
    start: int = 0
    length: int = 0
    sent: int = 0


class UnsatisfiableRangeError(Exception):
    """A range that begins behind the end of the file."""


def error_response(status: http.HTTPStatus, fields: str = "") -> Response:
    """A response whose body says no more than its status."""
    text = f"{status} {status.phrase}\n".encode()
    return _text(status, "text/plain; charset=utf-8", text, fields)


def page_response(page: Page, query: bytes) -> Response:
    if page.location:
        location = page.location + query.decode("ascii")
        return error_response(page.status, f"Location: {location}\r\n")
    return _text(page.status, "text/html; charset=utf-8", page.content, "")


def respond(request: Request, found: Found) -> Response:
    """Answer a GET or HEAD for a file."""
    headers = {
        name.decode("ascii"): value.decode("latin-1") for name, value in request.headers.items()
    }
    file = _representation(found, headers.get("accept-encoding", ""))
    if not _is_wanted(headers, file):
        return error_response(http.HTTPStatus.PRECONDITION_FAILED)
    if _is_fresh(headers, file):
        return Response(http.HTTPStatus.NOT_MODIFIED, file.fields)
    status, start, stop, fields = http.HTTPStatus.OK, 0, file.size, ""
    if request.method == b"GET" and headers.get("if-range", file.etag) == file.etag:
        try:
            part = parse_range(headers.get("range", ""), file.size)
        except UnsatisfiableRangeError:
            return error_response(
                http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                f"Content-Range: bytes */{file.size}\r\n",
            )
        if part is not None:
            status, (start, stop) = http.HTTPStatus.PARTIAL_CONTENT, part
            fields = f"Content-Range: bytes {start}-{stop - 1}/{file.size}\r\n"
    fields += f"Accept-Ranges: bytes\r\nContent-Length: {stop - start}\r\n"
    described = b"%bContent-Type: %b\r\n%b" % (file.fields, file.media_type, fields.encode())
    if file.content is not None:
        return Response(status, described, file.content[start:stop], length=stop - start)
    return Response(status, described, file, start, stop - start)


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last of a Range header for a file of ``size`` bytes.

    None if the header is to be ignored: it is malformed, asks for several ranges, or there is
    nothing a range could be of.

    Raises:
      UnsatisfiableRangeError
    """
    match = _RANGE.fullmatch(value)
    if match is None or size == 0:
        return None
    first, last = match.groups()
    if not first:
        if not last:
            return None
        if int(last) == 0:
            raise UnsatisfiableRangeError
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableRangeError
    return int(first), min(int(last) + 1, size) if last else size


def _text(status: http.HTTPStatus, media_type: str, text: bytes, fields: str) -> Response:
    described = f"{fields}Content-Type: {media_type}\r\nContent-Length: {len(text)}\r\n"
    return Response(status, described.encode(), text, length=len(text))


def _representation(found: Found, accepted: str) -> Representation:
    """The one that the client prefers; see Accept-Encoding."""
    if found.by_coding:
        codings = {
            coding.strip().lower()
            for coding, _, weight in (item.partition(";") for item in accepted.split(","))
            if not _NO_WEIGHT.fullmatch(weight.strip())
        }
        for coding, representation in found.by_coding.items():
            if coding in codings:
                return representation
    return found.plain


def _is_wanted(headers: Mapping[str, str], file: Representation) -> bool:
    """False if the client wants another version of the file, or none (section 13.1.1)."""
    match = headers.get("if-match")
    if match is not None:
        known = [tag.strip() for tag in match.split(",")]
        return file.etag in known or known == ["*"]
    since = _time(headers.get("if-unmodified-since"))
    return since is None or file.modified <= since


def _is_fresh(headers: Mapping[str, str], file: Representation) -> bool:
    """True if the client has this version of the file (section 13.2.2)."""
    none_match = headers.get("if-none-match")
    if none_match is not None:
        known = [tag.strip().removeprefix("W/") for tag in none_match.split(",")]
        return file.etag in known or known == ["*"]
    since = _time(headers.get("if-modified-since"))
    return since is not None and file.modified <= since


def _time(value: str | None) -> float | None:
    return None if value is None else parse_date(value, datetime.datetime.now(datetime.UTC))


def parse_date(value: str, now: datetime.datetime) -> float | None:
    """The time that a date says, in seconds since the epoch; None if it is none."""
    for form in _DATES:
        try:
            time = datetime.datetime.strptime(value, form)
            if form == _OF_RFC_850:
                time = _in_its_century(time, now)
        except ValueError:
            continue
        return time.replace(tzinfo=datetime.UTC).timestamp()
    return None


def _in_its_century(time: datetime.datetime, now: datetime.datetime) -> datetime.datetime:
    """What is meant by two digits of a year: nothing more than 50 years ahead (section 5.6.7)."""
    year = now.year - now.year % 100 + time.year % 100
    if (year - 50, *time.timetuple()[1:6]) > now.timetuple()[:6]:
        year -= 100
    return time.replace(year=year)
