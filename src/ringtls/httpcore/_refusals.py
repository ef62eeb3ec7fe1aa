"""Requests that a connection's server refuses by GOAWAY, while httpcore has them.

Rules:

1. Once the server leaves, no request begins on its connection; one that waits for its turn, and one
   that the server refuses, is ended by cancellation, so it waits for no stranger's answer.
2. It goes elsewhere: nothing was done for it. But not if part of its body was taken, unless that is
   there as bytes: another kind may go on from where it was left. And not if the server let none be
   answered, or that would never end.
3. A cancellation must not harm the other requests of the connection, for which each task reads and
   writes, too. So it waits while the task works for them: from when something was read until what
   httpcore has to say for it was written, and while it writes.
4. httpcore tells all requests of a connection what one of them met. So what has been sent, and is
   no GET, goes elsewhere only if GOAWAY refuses it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpcore
import httpx
import trio

from ._requests import Requests

__all__ = ["Refusals"]


class Refusals:
    """Those of one connection."""

    def __init__(self) -> None:
        self._pending: dict[trio.lowlevel.Task, list[_Pending]] = {}  # a body may ask for others
        self._working: set[trio.lowlevel.Task] = set()  # rule 3
        self.requests: Requests | None = None  # once the server leaves

    @property
    def has_requests(self) -> bool:
        """True if httpcore has some whose answers have not begun."""
        return bool(self._pending)

    async def run(
        self,
        handle: Callable[[httpcore.Request], Awaitable[httpcore.Response]],
        request: httpcore.Request,
    ) -> httpcore.Response:
        """The answer to a request, by ``handle``.

        Raises:
          httpcore.ConnectionNotAvailable: it may go elsewhere.
          httpcore.RemoteProtocolError: it is refused, and may not; besides what ``handle`` raises.
        """
        task = trio.lowlevel.current_task()
        pending = _Pending(self, request)
        self._pending.setdefault(task, []).append(pending)
        reason: Exception | None = None
        try:
            with pending.scope:
                return await handle(pending.traced)
        except httpcore.ConnectionNotAvailable as error:
            if pending.may_go_elsewhere_at_the_end:
                raise
            reason = error
        except (httpcore.ProtocolError, httpcore.NetworkError) as error:
            if not pending.is_refused:
                raise
            reason = error
        finally:
            self._pending[task].remove(pending)
            if not self._pending[task]:
                del self._pending[task]
                self._working.discard(task)
        if pending.is_refused and pending.may_go_elsewhere:
            raise httpcore.ConnectionNotAvailable from reason
        raise httpcore.RemoteProtocolError("the server leaves before the answer") from reason

    def refuse(self, requests: Requests) -> None:
        """The server leaves: end what it refuses."""
        self.requests = requests
        for task in self._pending:
            self._end(task)

    def begin_work(self) -> None:
        """The task that runs now works for all (rule 3)."""
        task = trio.lowlevel.current_task()
        if task in self._pending:
            self._working.add(task)

    def end_work(self) -> None:
        """It has done so."""
        task = trio.lowlevel.current_task()
        self._working.discard(task)
        self._end(task)

    def _end(self, task: trio.lowlevel.Task) -> None:
        if task in self._working:
            return
        for pending in self._pending.get(task, ()):
            if pending.is_refused:
                pending.scope.cancel()


class _Pending:
    """A request whose answer has not begun."""

    def __init__(self, refusals: Refusals, request: httpcore.Request) -> None:
        self.scope = trio.CancelScope()
        self._refusals = refusals
        self._request = request
        self._tell_caller = request.extensions.get("trace")
        self._stream: int | None = None  # in HTTP/2, where it is sent
        self._has_begun_body = False

    @property
    def traced(self) -> httpcore.Request:
        """The same request, which says how far it is."""
        made = self._request
        return httpcore.Request(
            made.method,
            made.url,
            headers=made.headers,
            content=made.stream,
            extensions={**made.extensions, "trace": self._trace},
        )

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event == "http2.send_request_headers.started":
            if self._refusals.requests is not None:
                raise httpcore.ConnectionNotAvailable
            self._stream = info["stream_id"]
        elif event == "http2.send_request_body.started":
            self._has_begun_body = True
        if self._tell_caller is not None:
            await self._tell_caller(event, info)

    @property
    def is_refused(self) -> bool:
        requests = self._refusals.requests
        return requests is not None and (self._stream is None or requests.refuses(self._stream))

    @property
    def may_go_elsewhere(self) -> bool:
        """Rule 2, if it is refused."""
        requests = self._refusals.requests
        if self._stream is None or requests is None:
            return True
        can_be_had_again = not self._has_begun_body or isinstance(
            self._request.stream, httpx.ByteStream
        )
        return requests.lets_some_be_answered and can_be_had_again

    @property
    def may_go_elsewhere_at_the_end(self) -> bool:
        """Rule 4."""
        return self._stream is None or self._request.method == b"GET"
