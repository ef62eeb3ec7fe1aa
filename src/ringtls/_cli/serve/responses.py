"""What is answered to a request: its head as plain data, and from where its body comes.

RFC 9110 for methods, statuses, conditions (section 13) and ranges (section 14). Of conditions
If-None-Match, If-Modified-Since and If-Range are known; ranges are single.

Nothing here knows of connections; the caller adds what belongs to one.
"""

from __future__ import annotations

import datetime
import email.utils
import errno
import html
import http
import logging
import mimetypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..server import StartError
from .files import OpenFile, quoted, resolve, segments_of

__all__ = ["Body", "Request", "Response", "check_root", "error_response", "parse_range", "respond"]

logger = logging.getLogger("ringtls.server")

_INDEX = "index.html"

#: A target may be a whole URL (RFC 9112, section 3.2.2).
_ORIGIN = re.compile(r"\Ahttps?://[^/?]*", re.IGNORECASE)

#: The one form that clients may send (RFC 9110, section 5.6.7).
_DATE = "%a, %d %b %Y %H:%M:%S GMT"

#: Nobody's files are larger than what nineteen digits can say.
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """The head of a request. Names of headers are in lower case."""

    method: str
    target: str
    version: str
    headers: Mapping[str, str]


@dataclass
class Body:
    """What is sent after the head. Whoever has it must close it.

    Attributes:
      start: its first bytes; all of them, if there is no file.
      length: of the whole, in bytes.
      file: has the whole, from ``offset`` on.
    """

    start: bytes
    length: int
    file: OpenFile | None = None
    offset: int = 0

    def read(self, position: int) -> bytes:
        """The next bytes from ``position`` on; b"" if the file has become too short for it."""
        assert self.file is not None
        return self.file.read(self.offset + position, self.length - position)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


@dataclass
class Response:
    status: http.HTTPStatus
    headers: list[tuple[str, str]]
    body: Body = field(default_factory=lambda: Body(b"", 0))


class UnsatisfiableRangeError(Exception):
    """A range that begins behind the end of the file."""


def check_root(directory: Path) -> Path:
    """The real path of a directory that can be served.

    Raises:
      StartError: it can't.
    """
    try:
        root = directory.resolve(strict=True)
        next(root.iterdir(), None)
    except OSError as error:
        raise StartError(f"can't serve the directory {directory}: {error.strerror}") from error
    return root


def respond(root: Path, request: Request) -> Response:
    """Answer a request for what is below ``root``. Does disk I/O; raises nothing."""
    if request.method not in ("GET", "HEAD"):
        return error_response(http.HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD"))
    try:
        response = _respond_to_path(root, request)
    except PermissionError:
        response = error_response(http.HTTPStatus.FORBIDDEN)
    except OSError as error:
        if not _names_nothing(error):
            logger.error("can't serve %s: %s", request.target, error)
            response = error_response(http.HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            response = error_response(http.HTTPStatus.NOT_FOUND)
    if request.method == "HEAD":
        response.body.close()
        response.body = Body(b"", 0)
    return response


def error_response(status: http.HTTPStatus, *headers: tuple[str, str]) -> Response:
    """A response whose body says no more than its status."""
    return _text(status, "text/plain; charset=utf-8", f"{status} {status.phrase}\n", *headers)


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


def _names_nothing(error: OSError) -> bool:
    """True if the error is the fault of the name, and not of this machine."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno in (
        errno.ELOOP,
        errno.ENAMETOOLONG,
    )


def _respond_to_path(root: Path, request: Request) -> Response:
    raw_path, _, query = _ORIGIN.sub("", request.target).partition("?")
    segments = segments_of(raw_path or "/")
    path = resolve(root, segments)
    if not path.is_dir():
        if not segments[-1]:
            raise FileNotFoundError(path)
        return _file(path, request)
    if segments[-1]:
        location = quoted([*segments, ""]) + ("?" + query if query else "")
        return error_response(http.HTTPStatus.MOVED_PERMANENTLY, ("Location", location))
    if os.path.lexists(path / _INDEX):
        return _file(resolve(root, [*segments, _INDEX]), request)
    return _listing(path, segments)


# Files


def _file(path: Path, request: Request) -> Response:
    file = OpenFile(path)
    try:
        response = _open_file(file, path, request)
    except BaseException:
        file.close()
        raise
    if response.body.file is None:
        file.close()
    return response


def _open_file(file: OpenFile, path: Path, request: Request) -> Response:
    size = file.stat.st_size
    etag = f'"{file.stat.st_mtime_ns:x}-{size:x}"'
    modified = email.utils.formatdate(file.stat.st_mtime, usegmt=True)
    headers = [("ETag", etag), ("Last-Modified", modified)]
    if _is_fresh(request.headers, etag, int(file.stat.st_mtime)):
        return Response(http.HTTPStatus.NOT_MODIFIED, headers)
    headers += [("Accept-Ranges", "bytes")]
    status, start, stop = http.HTTPStatus.OK, 0, size
    if request.method == "GET" and request.headers.get("if-range", etag) in (etag, modified):
        try:
            part = parse_range(request.headers.get("range", ""), size)
        except UnsatisfiableRangeError:
            return error_response(
                http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                ("Content-Range", f"bytes */{size}"),
            )
        if part is not None:
            status, (start, stop) = http.HTTPStatus.PARTIAL_CONTENT, part
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{size}"))
    length = stop - start
    headers += [("Content-Type", _content_type(path)), ("Content-Length", str(length))]
    first = file.read(start, length) if request.method == "GET" else b""
    if len(first) == length:
        return Response(status, headers, Body(first, length))
    return Response(status, headers, Body(first, length, file, start))


def _is_fresh(headers: Mapping[str, str], etag: str, modified: int) -> bool:
    """True if the client has this version of the file (RFC 9110, section 13.2.2)."""
    none_match = headers.get("if-none-match")
    if none_match is not None:
        known = [tag.strip().removeprefix("W/") for tag in none_match.split(",")]
        return etag in known or known == ["*"]
    try:
        since = datetime.datetime.strptime(headers.get("if-modified-since", ""), _DATE)
    except ValueError:
        return False
    return modified <= since.replace(tzinfo=datetime.UTC).timestamp()


def _content_type(path: Path) -> str:
    kind, encoding = mimetypes.guess_type(str(path))
    if kind is None or encoding is not None:  # a compressed file is served as it is
        return "application/octet-stream"
    return kind


# Text


def _listing(path: Path, segments: list[str]) -> Response:
    title = html.escape(f"Index of /{'/'.join(segments)}")
    lines = ["<!DOCTYPE html>", '<meta charset="utf-8">', f"<title>{title}</title>"]
    lines += [f"<h1>{title}</h1>", "<ul>"]
    if len(segments) > 1:
        lines.append('<li><a href="../">../</a>')
    for name in sorted(os.listdir(path)):
        if os.path.isdir(path / name):
            name += "/"
        link = quoted([*segments[:-1], *name.split("/")])
        lines.append(f'<li><a href="{html.escape(link)}">{html.escape(name)}</a>')
    lines.append("</ul>\n")
    return _text(http.HTTPStatus.OK, "text/html; charset=utf-8", "\n".join(lines))


def _text(
    status: http.HTTPStatus, content_type: str, text: str, *headers: tuple[str, str]
) -> Response:
    body = text.encode(errors="replace")  # names of files need not be UTF-8
    length = len(body)
    described = [("Content-Type", content_type), ("Content-Length", str(length)), *headers]
    return Response(status, described, Body(body, length))
