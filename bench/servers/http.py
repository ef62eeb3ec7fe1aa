"""The HTTP that all servers speak: only as much of it as the works need.

1. Whatever is asked is answered with RESPONSE: byte for byte as long as nginx's answer. A request
   with a body is answered when all of the body has come.
2. A request for /bulk is answered with BULK_SIZE bytes, in chunks of CHUNK.
3. "Connection: close" in the request ends the connection after the answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = [
    "BODY",
    "BULK",
    "BULK_HEAD",
    "BULK_SIZE",
    "CHUNK",
    "CHUNKS",
    "END_OF_HEAD",
    "RESPONSE",
    "RESPONSE_AND_CLOSE",
    "Request",
    "parse",
]

END_OF_HEAD = b"\r\n\r\n"
BULK = b"/bulk"
BODY = b"Hello, world\n"

CHUNK = bytes(256 * 1024)
CHUNKS = 256
BULK_SIZE = CHUNKS * len(CHUNK)

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _head(media_type: str, length: int, connection: str) -> bytes:
    lines = (
        "HTTP/1.1 200 OK",
        "Server: bench",
        "Date: Thu, 01 Jan 1970 00:00:00 GMT",
        f"Content-Type: {media_type}",
        f"Content-Length: {length}",
        f"Connection: {connection}",
    )
    return "\r\n".join(lines).encode() + END_OF_HEAD


RESPONSE = _head("text/plain", len(BODY), "keep-alive") + BODY
RESPONSE_AND_CLOSE = _head("text/plain", len(BODY), "close") + BODY
BULK_HEAD = _head("application/octet-stream", BULK_SIZE, "keep-alive")


class Request(NamedTuple):
    """What a request's head says.

    Attributes:
      is_bulk: it asks for the big download.
      closes: it wants the connection closed afterwards.
      body_size: bytes that follow the head.
    """

    is_bulk: bool
    closes: bool
    body_size: int


def parse(head: bytes) -> Request:
    body = CONTENT_LENGTH.search(head)
    return Request(
        head.startswith(BULK, head.index(b" ") + 1),
        b"Connection: close" in head,
        int(body[1]) if body else 0,
    )
