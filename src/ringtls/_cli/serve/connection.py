"""One HTTP/1.1 connection of ``ringtls serve``.

Rules:

1. A request that has a body is answered with ``Connection: close``, and the body is not read:
   the end of the stream throws away what still comes. So nobody is told to continue (100).
2. While the server drains, a connection ends after its response.
3. A response that can't be completed ends the connection, cleanly: Content-Length tells the
   client that something is missing, and a reset would take from it what it has not read yet.
4. A file is read and sent one piece at a time, each when the kernel has taken the one before. So a
   peer that takes nothing in costs little memory. So does one that sends requests without reading
   the answers, because the next request waits until the answer to this one is gone. As long as the
   kernel takes each piece at once, one follows the other, and then it is the others' turn.
"""

from __future__ import annotations

import email.utils
import http
import logging
import time
from pathlib import Path

from ..server import SHORTAGES, Connection, Metrics, Service, Wait, is_logging, log_request
from .files import PIECE, FileCache, Found, Page, Policy, Representation, read_piece
from .opening import Directory
from .paths import BadTargetError, path_of
from .requests import BadRequestError, Known, Request, RequestReader
from .responses import Response, error_response, page_response, respond

__all__ = ["FileService"]

logger = logging.getLogger("ringtls.server")

RECEIVE_SIZE = 16384

#: Bytes of a file that one connection is sent in its turn.
TURN = 1024 * 1024

#: How often a file is tried to be opened again when descriptors run short.
SHORTAGE_RETRIES = 10

_STATUS_LINES = {
    status: f"HTTP/1.1 {status.value} {status.phrase}\r\nDate: ".encode()
    for status in http.HTTPStatus
}

_STATUS_TEXTS = {status: str(status.value) for status in http.HTTPStatus}

_CLOSE = b"Connection: close\r\n"

#: By the version of the request.
_STAYS_OPEN = {"1.1": b"", "1.0": b"Connection: keep-alive\r\n"}


class FileService(Service):
    """Serves what is in a directory."""

    alpn = ("http/1.1",)

    def __init__(self, directory: Path, policy: Policy) -> None:
        self._directory = directory
        self._policy = policy
        self._cache: FileCache
        self._known = Known()
        self._buffers: list[bytearray] = []  # for pieces of files
        self._second = 0
        self._date = b""

    def add_metrics(self, metrics: Metrics) -> None:
        statuses = [str(status.value) for status in http.HTTPStatus]
        self._requests = metrics.counter(
            "ringtls_requests", "Requests that were answered.", status=statuses
        )

    def prepare(self) -> None:
        self._cache = FileCache(Directory(self._directory), self._policy)

    async def handle(self, connection: Connection) -> None:
        stream, reader, known = connection.stream, RequestReader(), self._known
        connection.data = reader
        wait = Wait.FIRST_REQUEST
        try:
            while True:
                connection.begin(wait)
                data = await stream.receive_some(RECEIVE_SIZE)
                request = known.get(data) or await self._read(connection, reader, data)
                while request is not None:
                    connection.begin(Wait.ROOM)
                    if not await self._serve(connection, request) or connection.draining:
                        return
                    if not reader.has_begun:
                        break
                    await stream.wait_sent()  # rule 4
                    request = await self._read(connection, reader)
                else:
                    return
                wait = Wait.NEXT_REQUEST
        except BadRequestError as error:
            logger.info("%s: bad request: %s", connection.peer, error)
            connection.begin(Wait.ROOM)
            await self._send_error(connection, error.request, error.status)

    async def _read(
        self, connection: Connection, reader: RequestReader, data: bytes | None = None
    ) -> Request | None:
        """The next request, of which ``data`` is the beginning; None at the end of the stream.

        Raises:
          BadRequestError
        """
        if data is None:
            request = reader.next()
        else:
            request = reader.feed(data)
            if request is not None and not reader.has_begun:
                self._known.remember(data, request)
        while request is None and data != b"":
            if reader.has_begun and connection.waits_for is not Wait.REQUEST:
                connection.begin(Wait.REQUEST)
            data = await connection.stream.receive_some(RECEIVE_SIZE)
            request = reader.feed(data)
        if request is None and reader.has_begun:
            logger.info("%s: ended within a request", connection.peer)
        return request

    async def say_last(self, connection: Connection) -> None:
        reader: RequestReader = connection.data
        await self._send_error(connection, reader.unread, http.HTTPStatus.REQUEST_TIMEOUT)

    async def _send_error(
        self, connection: Connection, request: Request, status: http.HTTPStatus
    ) -> None:
        response = _method_not_allowed() if status == 405 else error_response(status)
        await self._answer(connection, request, response, _CLOSE)

    async def _serve(self, connection: Connection, request: Request) -> bool:
        """Answer a request. False if it was the last of this connection."""
        if request.is_plain and not connection.draining:
            found = self._cache.get(request.target)
            if found is not None and found.is_simple:
                await connection.stream.send_all(self._whole(found.plain))
                self._note(connection, request, http.HTTPStatus.OK, found.plain.size)
                return True
        response = await self._respond(connection, request)
        keep_alive = request.keep_alive and not request.has_body and not connection.draining
        field = _CLOSE if not keep_alive else _STAYS_OPEN[request.version]
        if not await self._answer(connection, request, response, field):
            text = "%s: a file was shorter than its size when it was sent"
            logger.warning(text, connection.peer)
            return False
        return keep_alive

    async def _answer(
        self, connection: Connection, request: Request, response: Response, field: bytes
    ) -> bool:
        """False if the response could not be completed (rule 3)."""
        try:
            return await self._send(connection, request, response, self._head(response, field))
        finally:
            self._note(connection, request, response.status, response.sent)

    async def _send(
        self, connection: Connection, request: Request, response: Response, head: bytes
    ) -> bool:
        stream, body = connection.stream, response.body
        if request.method == b"HEAD":
            await stream.send_all(head)
        elif isinstance(body, bytes):
            await stream.send_all(head + body)
            response.sent = len(body)
        else:
            await stream.send_all(head)
            return await self._send_file(connection, response, body)
        return True

    async def _respond(self, connection: Connection, request: Request) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            return _method_not_allowed()
        try:
            path, query = path_of(request.target)
            found = self._cache.get(path) or await self._find(connection, path)
        except BadTargetError as error:
            raise BadRequestError(request, http.HTTPStatus.BAD_REQUEST, str(error)) from None
        except FileNotFoundError:
            return error_response(http.HTTPStatus.NOT_FOUND)
        except PermissionError:
            return error_response(http.HTTPStatus.FORBIDDEN)
        except OSError as error:
            logger.error("can't serve %s: %s", request.target.decode("latin-1"), error)
            return error_response(http.HTTPStatus.INTERNAL_SERVER_ERROR)
        return respond(request, found) if isinstance(found, Found) else page_response(found, query)

    async def _find(self, connection: Connection, path: bytes) -> Found | Page:
        for _ in range(SHORTAGE_RETRIES):
            try:
                return await self._cache.find(path)
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
            await connection.make_room()
        return await self._cache.find(path)

    async def _send_file(
        self, connection: Connection, response: Response, file: Representation
    ) -> bool:
        stream = connection.stream
        in_turn = 0
        while left := response.length - response.sent:
            # A buffer is held while this waits for the disk, and not while it waits for the peer.
            buffer = self._buffers.pop() if self._buffers else bytearray(PIECE)
            memory = memoryview(buffer)[:left]
            size = await read_piece(file.file, memory, response.start + response.sent)
            if not size:
                return False
            connection.begin(Wait.ROOM)
            unsent = stream.send_nowait(memory[:size])
            self._buffers.append(buffer)
            response.sent += size
            in_turn += size
            if unsent or in_turn >= TURN:
                await stream.wait_sent()
                in_turn = 0
        return True

    def _whole(self, file: Representation) -> bytes:
        """The answer to a plain request for a small file: the same for a second."""
        date, answer = file.whole
        if date is not self._now():
            assert file.content is not None
            fields = b"%bContent-Type: %b\r\nAccept-Ranges: bytes\r\nContent-Length: %d\r\n" % (
                file.fields,
                file.media_type,
                file.size,
            )
            response = Response(http.HTTPStatus.OK, fields)
            answer = self._head(response, b"") + file.content
            file.whole = self._date, answer
        return answer

    def _head(self, response: Response, connection_field: bytes) -> bytes:
        return b"%b%b\r\nServer: ringtls\r\n%b%b\r\n" % (
            _STATUS_LINES[response.status],
            self._now(),
            response.fields,
            connection_field,
        )

    def _now(self) -> bytes:
        """The value of Date; the same object for a second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._date = email.utils.formatdate(second, usegmt=True).encode()
        return self._date

    def _note(
        self, connection: Connection, request: Request, status: http.HTTPStatus, sent: int
    ) -> None:
        """Count it, and log it."""
        self._requests.add(_STATUS_TEXTS[status])
        if is_logging():
            log_request(
                peer=connection.peer,
                identity=connection.identity,
                method=request.method.decode("ascii"),
                target=request.target,
                version=request.version,
                status=status.value,
                sent=sent,
                referrer=request.headers.get(b"referer", b"-"),
                agent=request.headers.get(b"user-agent", b"-"),
            )


def _method_not_allowed() -> Response:
    return error_response(http.HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD\r\n")
