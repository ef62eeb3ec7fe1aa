"""hypercorn's HTTP/2, and what it leaves open at an end.

Rules:

1. A WebSocket that is closed ends its stream (RFC 8441, section 5), and an answer that its
   application has left unfinished resets it: else a client would wait for the rest. hypercorn
   leaves both open.
2. Data may come for a stream that is over here: the rest of a request that was answered early, the
   end of a WebSocket. It is thrown away, and the other streams go on. No RST_STREAM asks to stop
   it, as a server may (RFC 9113, section 8.1): curl stops at END_STREAM by itself, and httpcore, if
   it is reset before it has sent the body, raises instead of reading the answer.
3. After ``keep_alive_max_requests``, in a server that ends, and after the client's GOAWAY of
   NO_ERROR, no other request is served. One that comes all the same is told by GOAWAY that it can
   be sent elsewhere (RFC 9113, section 6.8). What is on its way is answered, and then the
   connection ends. hypercorn and h2 would end it amid the answers.
4. The connection is idle when all has been sent: hypercorn takes it for idle before the last
   answer's END_STREAM is out.
5. A CONNECT that is not for a WebSocket is answered with 501 (RFC 9110, section 9.3.6). A path
   that is not ASCII makes a request malformed, which is an error of its stream (RFC 9113, section
   8.1.1). By either hypercorn would end the connection.
6. Priorities among streams that are not open are nothing (RFC 9113, section 5.3.2, deprecates all):
   hypercorn keeps them, and fails at the thousandth.
7. A request that is refused before the application hears of it is over: for hypercorn the
   connection would never be idle again.
8. What an application sends waits for room: hypercorn lets it send on whenever little is taken out
   of its buffer, however much is left there, for a client whose window is 0. It waits no more when
   the connection is over; and what then is left is not followed by an end.
9. A header that is none (RFC 9110, sections 5.1 and 5.5; RFC 9113, section 8.2.1) is an error of
   its application's, as in HTTP/1, and is not sent: a proxy behind could read two out of it.
   Neither hypercorn nor h2 looks at that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from h2.connection import ConnectionInputs, ConnectionState, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, PriorityUpdated, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from h2.stream import StreamState
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import (
    Data,
    InformationalResponse,
    Request,
    Response,
    StreamClosed,
    Trailers,
)
from hypercorn.protocol.h2 import (
    BUFFER_LOW_WATER,
    BufferCompleteError,
    H2Protocol,
    StreamBuffer,
)
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hyperframe.frame import GoAwayFrame

from ._websockets import PROTOCOL_ERROR, adopted, close

if TYPE_CHECKING:
    import h2.events
    from hypercorn.events import Event as ConnectionEvent
    from hypercorn.protocol.events import Event

__all__ = ["Http2"]


class Http2(H2Protocol):
    """HTTP/2; the arguments are hypercorn's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection.state_machine = _StateMachine()
        self.streams = _Streams()
        self.stream_buffers: dict[int, Any] = _Buffers()
        self._served = 0
        self._last_served = 0
        self._has_refused = False
        self._client_leaves = False

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        if headers is not None:  # the request that asked for HTTP/2 (RFC 7540, section 3.2)
            self._note_request(1)
        await super().initiate(headers, settings)

    async def handle(self, event: ConnectionEvent) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            for buffer in self.stream_buffers.values():
                await buffer.give_up()

    @property
    def _takes_no_more(self) -> bool:
        return (
            self._client_leaves
            or self._served >= self.config.keep_alive_max_requests
            or self.context.terminated.is_set()
        )

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        left: list[h2.events.Event] = []
        for event in events:
            if isinstance(event, ConnectionTerminated) and event.error_code == ErrorCodes.NO_ERROR:
                self._client_leaves = True
            elif isinstance(event, PriorityUpdated):
                if self.stream_buffers.keys() >= {
                    event.stream_id,
                    event.depends_on or event.stream_id,
                }:
                    left.append(event)
            elif not isinstance(event, RequestReceived):
                left.append(event)
            elif self._takes_no_more:
                await self._refuse(event.stream_id)
            elif _is_for_a_tunnel(headers := dict(event.headers or ())):
                self._answer_tunnel(event.stream_id)
            elif not headers[b":path"].isascii():
                self._reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            else:
                self._note_request(event.stream_id)
                left.append(event)
            if isinstance(event, StreamReset) and event.stream_id in self.stream_buffers:
                await self.stream_buffers[event.stream_id].close()
        await super()._handle_events(left)
        # hypercorn has said of each new request that it goes on, and it may be over by then.
        if self._client_leaves or any(isinstance(event, RequestReceived) for event in left):
            await self._report()

    def _note_request(self, stream_id: int) -> None:
        self._served += 1
        self._last_served = stream_id

    async def _refuse(self, stream_id: int) -> None:
        """Rule 3."""
        if not self._has_refused:
            self._has_refused = True
            await self._flush()
            goaway = GoAwayFrame(0, self._last_served, ErrorCodes.NO_ERROR)
            await self.send(RawData(goaway.serialize()))
        self._reset(stream_id, ErrorCodes.REFUSED_STREAM)

    def _answer_tunnel(self, stream_id: int) -> None:
        """Rule 5."""
        headers = [(b":status", b"501"), *self.config.response_headers("h2")]
        with suppress(ProtocolError):  # its client has reset it
            self.connection.send_headers(stream_id, headers, end_stream=True)
        self._reset(stream_id, ErrorCodes.NO_ERROR)

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        with suppress(ProtocolError):  # it is over
            self.connection.reset_stream(stream_id, code)

    async def _create_stream(self, request: RequestReceived) -> None:
        await super()._create_stream(request)
        self.keep_alive_requests = 0  # rule 3
        stream = self.streams.get(request.stream_id)
        if stream is not None and stream.app_put is None:  # rule 7
            await self.stream_send(StreamClosed(request.stream_id))

    async def stream_send(self, event: Event) -> None:
        if isinstance(event, Request | InformationalResponse | Response | Trailers):
            _check(event.headers)
        if not isinstance(event, StreamClosed):
            await super().stream_send(event)
            return
        if not self.closed:
            if last := close(self.streams[event.stream_id], PROTOCOL_ERROR):
                await super().stream_send(Data(event.stream_id, last))
            await self._end(event.stream_id)
        await self._close_stream(event.stream_id)
        await self._report()

    async def _send_data(self, stream_id: int) -> None:
        await super()._send_data(stream_id)
        if stream_id not in self.stream_buffers:
            if self.idle:
                await self._report()
        elif self._waits_for_client(stream_id) and self.is_owed:
            await self.send(Updated(idle=False))

    async def _report(self) -> None:
        """Rules 3 and 4."""
        is_idle = self.idle and not self.stream_buffers
        if is_idle and self._takes_no_more:
            await self.send(Closed())
        else:
            await self.send(Updated(idle=is_idle))

    async def _end(self, stream_id: int) -> None:
        """Rule 1."""
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or buffer.complete:
            return
        self.priority.unblock(stream_id)
        if isinstance(self.streams[stream_id], WSStream):
            buffer.set_complete()
        else:
            self._reset(stream_id, ErrorCodes.INTERNAL_ERROR)
            await buffer.close()
        await self.has_data.set()
        await self._flush()

    @property
    def is_owed(self) -> bool:
        """True if none of the streams can go on before the client has sent something."""
        streams = self.streams.keys() | self.stream_buffers.keys()
        return bool(streams) and all(map(self._waits_for_client, streams))

    def _waits_for_client(self, stream_id: int) -> bool:
        """For room in its windows, or for the rest of a body."""
        stream = self.connection.streams.get(stream_id)
        if stream is None:
            return False
        buffer = self.stream_buffers.get(stream_id)
        if buffer is not None and buffer.buffer:
            room = min(
                stream.outbound_flow_control_window, self.connection.outbound_flow_control_window
            )
            return room <= 0
        is_over = not isinstance(self.streams.get(stream_id), HTTPStream)
        return not is_over and stream.state_machine.state in _OPEN

    def last_words(self) -> bytes:
        connection = self.connection
        if connection.state_machine.state is not ConnectionState.CLOSED:
            for stream_id, stream in self.streams.items():
                buffer = self.stream_buffers.get(stream_id)
                if buffer is None or buffer.buffer:
                    continue  # it has ended, or this would land inside of what is to be sent
                last = close(stream)
                if last and len(last) <= connection.local_flow_control_window(stream_id):
                    connection.send_data(stream_id, last, end_stream=True)
            connection.close_connection(
                last_stream_id=self._last_served if self._has_refused else None
            )
        words: bytes = connection.data_to_send()
        return words


#: What the name of a header is, and what its value is not (rule 9).
_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_NO_VALUE = re.compile(rb"[\0\r\n]")


def _check(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Rule 9."""
    for name, value in headers:
        if not _NAME.fullmatch(name.removeprefix(b":")) or _NO_VALUE.search(value):
            raise ValueError(f"not a header: {name!r}: {value!r}")


#: States of a stream whose client has not ended it.
_OPEN = (StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL)

#: Those of h2, but for a client's GOAWAY, which is not the end (rule 3).
_TRANSITIONS = {
    **H2ConnectionStateMachine._transitions,
    (ConnectionState.SERVER_OPEN, ConnectionInputs.RECV_GOAWAY): (
        None,
        ConnectionState.SERVER_OPEN,
    ),
}


class _StateMachine(H2ConnectionStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._transitions = _TRANSITIONS


class _Streams(dict[int, Any]):
    """Those that are open; any other is over (rule 2)."""

    def __setitem__(self, stream_id: int, made: Any) -> None:
        super().__setitem__(stream_id, adopted(made))

    def __missing__(self, stream_id: int) -> _Over:
        return _Over()


class _Buffer(StreamBuffer):
    """By rule 8."""

    _is_given_up = False

    async def give_up(self) -> None:
        """Nothing of it is sent any more."""
        self._is_given_up = True
        await self._paused.set()
        await self._is_empty.set()

    async def drain(self) -> None:
        await super().drain()
        if self._is_given_up:
            raise BufferCompleteError

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _Buffers(dict[int, Any]):
    def __setitem__(self, stream_id: int, made: StreamBuffer) -> None:
        made.__class__ = _Buffer
        super().__setitem__(stream_id, made)


class _Over:
    async def handle(self, event: Event) -> None:
        pass


def _is_for_a_tunnel(headers: dict[bytes, bytes]) -> bool:
    return headers[b":method"].upper() == b"CONNECT" and headers.get(b":protocol") != b"websocket"
