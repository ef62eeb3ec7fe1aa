"""``python -m bench.ends CANDIDATE COUNT``: how its connections end in the eyes of their peers.

1. The cases and the peer are those of ``ringtls demo``. What they do to a stream of trio's they do
   here to asyncio's streams too. A cancelled handler of asyncio closes its stream in a ``finally``,
   and waits until it is closed.
2. There is one more case: the stream is dropped without being closed, and garbage is collected.
3. asyncio sends FIN after close_notify only when it is answered. So this peer answers if nothing
   comes for a while.

The counts are printed as JSON: {case: {end: count}}.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import select
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import cast

import trio

from ringtls._cli.demo.cases import CASES, RETURN, Case, Connection, HandlerFailedError
from ringtls._cli.demo.measure import (
    CLIENTS,
    HOST,
    NUMBER_SIZE,
    RINGTLS,
    SEND_BUFFER,
    SOURCE_SIZE,
    TRIO,
    Contexts,
    Server,
    measure,
    throwaway_contexts,
)
from ringtls._cli.demo.peer import End, observe_end

from .load import LoadError
from .settings import Settings

__all__ = ["MEASURES", "NOTE", "AnsweringSocket", "Ends", "count_ends"]

#: How many connections ended how, by case and by end.
Ends = dict[str, dict[str, int]]

DROPPED = replace(RETURN, name="dropped without a close")

READ_SIZE = 64 * 1024

#: Seconds that the peer waits for FIN before it answers close_notify.
PATIENCE = 0.2

NOTE = (
    "Ends: nginx and the protocol have no tasks that could be cancelled, and are left out. asyncio "
    "sends FIN only when close_notify is answered, so the peer answers it, "
    f"after {PATIENCE} seconds without FIN."
)

#: Seconds until garbage is collected, when a handler of asyncio has ended.
COLLECT_AFTER = 0.01


class AnsweringSocket(ssl.SSLSocket):
    """A client's socket that keeps rule 3 at the point where the peer goes on without TLS."""

    def detach(self) -> int:
        readable, _, _ = select.select([self], [], [], PATIENCE)
        if not readable:
            self.unwrap()
        return super().detach()


class DroppedStream(trio.abc.Stream):
    """A stream that is not closed when it should be, but forgotten."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream: trio.abc.Stream | None = stream

    @property
    def _kept(self) -> trio.abc.Stream:
        if self._stream is None:
            raise trio.ClosedResourceError
        return self._stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._kept.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._kept.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._kept.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._stream = None
        gc.collect()


class DroppingListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener whose streams are dropped."""

    def __init__(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        self._listener = listener

    async def accept(self) -> trio.abc.Stream:
        return DroppedStream(await self._listener.accept())

    async def aclose(self) -> None:
        await self._listener.aclose()


class AsyncioStream:
    """What the cases use of a trio stream, over asyncio's two."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send_all(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive_some(self, max_bytes: int = READ_SIZE) -> bytes:
        return await self._reader.read(max_bytes)


class AsyncioConnection(Connection):
    """A connection whose handler is a task of asyncio."""

    def cancel_after(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().call_later(seconds, task.cancel)


async def _measure_asyncio(case: Case, connections: int, contexts: Contexts) -> Counter[End]:
    """Like the demo's ``measure``, for a server on asyncio's streams."""
    source = memoryview(random.Random(case.name).randbytes(SOURCE_SIZE + connections))
    known = [AsyncioConnection(n, source[n:][:SOURCE_SIZE]) for n in range(connections)]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, HandlerFailedError, asyncio.CancelledError):
            try:
                number = int.from_bytes(await reader.readexactly(NUMBER_SIZE), "big")
                stream = cast(trio.abc.Stream, AsyncioStream(reader, writer))
                await case.serve(stream, known[number])
            finally:
                if case is DROPPED:
                    asyncio.get_running_loop().call_later(COLLECT_AFTER, gc.collect)
                else:
                    writer.close()
                    await writer.wait_closed()

    def run_client(connection: Connection) -> End:
        def converse(client: ssl.SSLSocket) -> None:
            client.sendall(connection.number.to_bytes(NUMBER_SIZE, "big"))
            case.converse(client, connection)

        return connection.judge(observe_end(address, contexts.client, converse))

    listener = socket.create_server((HOST, 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    address = listener.getsockname()
    server = await asyncio.start_server(handle, sock=listener, ssl=contexts.server)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(CLIENTS) as threads:
        clients = [loop.run_in_executor(threads, run_client, connection) for connection in known]
        ends = Counter(await asyncio.gather(*clients))
    server.close()
    return ends


def _measure_trio(server: Server, case: Case, connections: int, contexts: Contexts) -> Counter[End]:
    if case is DROPPED:
        wrap = server.wrap
        server = replace(server, wrap=lambda *below: DroppingListener(wrap(*below)))
    return trio.run(measure, server, case, connections, contexts)


def _on_asyncio(case: Case, connections: int, contexts: Contexts) -> Counter[End]:
    return asyncio.run(_measure_asyncio(case, connections, contexts))


def _on_uvloop(case: Case, connections: int, contexts: Contexts) -> Counter[End]:
    import uvloop

    ends: Counter[End] = uvloop.run(_measure_asyncio(case, connections, contexts))
    return ends


def _measure_epoll(case: Case, connections: int, contexts: Contexts) -> Counter[End]:
    os.environ["RINGTLS_ENGINE"] = "epoll"
    return _measure_trio(RINGTLS, case, connections, contexts)


#: By the candidates' names.
MEASURES: Mapping[str, Callable[[Case, int, Contexts], Counter[End]]] = {
    "ringtls": partial(_measure_trio, RINGTLS),
    "ringtls_epoll": _measure_epoll,
    "trio": partial(_measure_trio, TRIO),
    "asyncio_streams": _on_asyncio,
    "uvloop_streams": _on_uvloop,
}


def count_ends(candidate: str, settings: Settings) -> Ends:
    """Run this program for a candidate, one of MEASURES.

    Raises:
      LoadError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.ends", candidate, str(settings.ends)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        process_group=0,  # ^C is for the harness, which kills this program
    )
    if done.returncode:
        raise LoadError(f"ends could not be counted: {done.stderr.strip()}")
    ends: Ends = json.loads(done.stdout)
    return ends


def main() -> None:
    candidate, count = sys.argv[1:]
    contexts = throwaway_contexts()
    contexts.client.sslsocket_class = AnsweringSocket
    ends = {}
    for case in (*CASES, DROPPED):
        seen = MEASURES[candidate](case, int(count), contexts)
        ends[case.name] = {end.value: number for end, number in seen.items()}
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
