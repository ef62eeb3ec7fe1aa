"""What ``ringtls asgi`` does with connections: ringtls.hypercorn's, under the server's limits.

Rules:

1. The application is imported in each worker, after the fork: what it opens, threads and
   connections, is not shared. ``prepare`` only sees whether there is such a module.
2. The application may take as long as it wants for a request: there is a limit only for a client
   that takes nothing in, or without which none of its requests can go on (``is_owed``), and that
   neither sends nor gets anything. Between requests the limits are those of all servers.
3. While the server drains, an answer announces that its connection will end, and then it ends.
"""

from __future__ import annotations

import http
import importlib
import importlib.util
import logging
import operator
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError, wrap_app

from ringtls.hypercorn import lifespan
from ringtls.hypercorn._connection import HypercornConnection

from ..server import (
    Connection,
    Metrics,
    Service,
    StartError,
    Wait,
    is_logging,
    limit_end,
    log_request,
)

__all__ = ["ApplicationService"]

_STATUSES = {str(status.value) for status in http.HTTPStatus}

REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class ApplicationService(Service):
    """Serves an ASGI application."""

    alpn = ("h2", "http/1.1")

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._config = Config()
        self._app: Any
        self._state: dict[str, Any]

    def add_metrics(self, metrics: Metrics) -> None:
        requests = metrics.counter(
            "ringtls_requests", "Requests that were answered.", status=[*_STATUSES, "other"]
        )
        self._config.logger_class = partial(_Log, requests)  # type: ignore[assignment]

    def prepare(self) -> None:
        sys.path.insert(0, "")
        try:
            is_there = importlib.util.find_spec(self._module) is not None
        except ModuleNotFoundError:  # the package that it would be in
            is_there = False
        if not is_there:
            raise StartError(f"there is no module {self._module!r} here")

    def running(self) -> AbstractAsyncContextManager[object]:
        return self._running()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        app = wrap_app(self._load(), self._config.wsgi_max_body_size, None)
        self._app = app
        try:
            async with lifespan(app, self._config) as self._state:
                yield
        except BaseExceptionGroup as group:
            failures, others = group.split((LifespanFailureError, LifespanTimeoutError))
            if failures is None or others is not None:
                raise
            raise StartError(f"the application failed: {_first(failures)}") from group

    def _load(self) -> Any:
        try:
            return operator.attrgetter(self._name)(importlib.import_module(self._module))
        except AttributeError as error:
            raise StartError(f"there is no {self._name!r} in {self._module!r}") from error

    async def handle(self, connection: Connection) -> None:
        context = WorkerContext(None)
        context.terminated = _Draining(connection)
        await _Connection(self._app, self._config, context, self._state, connection).run()

    async def say_last(self, connection: Connection) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await connection.stream.send_all(REQUEST_TIMEOUT)


class _Draining(EventWrapper):
    """Set while the server drains (rule 3)."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def is_set(self) -> bool:
        return self._connection.draining


class _Connection(HypercornConnection):
    def __init__(
        self,
        app: Any,
        config: Config,
        context: WorkerContext,
        state: dict[str, Any],
        connection: Connection,
    ) -> None:
        super().__init__(app, config, context, state, connection.stream)
        self._connection = connection
        self._has_begun = False
        self._is_receiving = False
        self._noted: Wait | None = None  # what is waited for behind a send

    def note(self, *, is_idle: bool) -> None:
        wait = self._wait()
        if is_idle:
            wait = Wait.NEXT_REQUEST if self._has_begun else Wait.FIRST_REQUEST
            self._has_begun = True
        if self._connection.waits_for is Wait.ROOM:
            self._noted = wait
        elif is_idle or wait is not self._connection.waits_for:
            self._connection.begin(wait)

    def _wait(self) -> Wait:
        """What there is to be waited for while there is a request (rule 2)."""
        if self._is_receiving and self._protocol.protocol.is_owed:
            return Wait.OWED
        return Wait.NOTHING

    async def receive(self) -> bytes:
        connection = self._connection
        self._is_receiving = True
        if connection.waits_for is Wait.NOTHING:
            connection.begin(self._wait())
        try:
            data = await connection.stream.receive_some(65536)
        finally:
            self._is_receiving = False
            if connection.waits_for is Wait.OWED and connection.cut is None:
                connection.begin(self._wait())
        # HTTP/2 has much to say between requests, and can't be slow with what is for all of them.
        if connection.waits_for in (Wait.FIRST_REQUEST, Wait.NEXT_REQUEST) and isinstance(
            self._protocol.protocol, H11Protocol
        ):
            connection.begin(Wait.REQUEST)
        return data

    async def send_all(self, data: bytes) -> None:
        connection = self._connection
        before = connection.waits_for, connection.deadline
        self._noted = None
        connection.begin(Wait.ROOM)
        await connection.stream.send_all(data)
        if connection.waits_for is Wait.ROOM:
            connection.waits_for, connection.deadline = before
            if self._noted is not None:
                connection.begin(self._noted)
            if connection.waits_for in (Wait.NOTHING, Wait.OWED):
                connection.begin(self._wait())

    async def wait_taken(self) -> None:
        connection = self._connection
        connection.begin(Wait.ROOM)
        with suppress(trio.BrokenResourceError):
            await connection.stream.wait_acknowledged()

    async def break_off(self) -> None:
        limit_end(self._connection)
        await super().break_off()


class _Log(Logger):
    """hypercorn's log, as that of the server."""

    def __init__(self, requests: Any, config: Config) -> None:
        self.access_logger = None
        self.error_logger = logging.getLogger("ringtls.server")
        self._requests = requests

    async def access(self, request: Any, response: Any, request_time: float) -> None:
        """Count a request, and log it."""
        status = None if response is None else int(response["status"])
        if status is not None:
            label = str(status)
            self._requests.add(label if label in _STATUSES else "other")
        if not is_logging():
            return
        query = request["query_string"]
        asked = dict(request["headers"])
        answered = {} if response is None else dict(response.get("headers", ()))
        length = answered.get(b"content-length")
        client = request["client"]
        log_request(
            peer="unix:" if client is None else f"{client[0]}:{client[1]}",
            identity=request["extensions"].get("tls", {}).get("client_cert_name") or "",
            method=request.get("method", "GET"),
            target=request["raw_path"] + (b"?" + query if query else b""),
            version=request["http_version"],
            status=status,
            sent=int(length) if length is not None and length.isdigit() else None,
            referrer=asked.get(b"referer", b"-"),
            agent=asked.get(b"user-agent", b"-"),
        )


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
