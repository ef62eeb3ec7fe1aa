"""The static check: what it says, what it does not say, by flake8 and by itself."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest

from ringtls.lint import Checker
from ringtls.lint._tables import RULES

HEAD = """\
import contextlib, ssl, unittest
import pytest, trio, ringtls
import ringtls as r
from ringtls import (
    SocketListener, SocketStream, TlsListener, TlsStream, open_tcp_stream,
    open_tls_over_tcp_listeners, open_tls_over_tcp_stream as connect,
)
from trio import aclose_forcefully
Alias = ringtls.TlsStream
Annotated: typing.TypeAlias = TlsStream
import attrs, dataclasses, typing
import anyio, ringtls.anyio
from ringtls.anyio import wrap_stream
from ringtls.blocking import call
from ringtls import AsyncDestructor, blocking
from ringtls.blocking import TlsStream as BlockingTlsStream

T = typing.TypeVar("T")

class Session(AsyncDestructor):
    def __init__(self, stream):
        self.stream = stream
        self.name = self.title()
    def title(self):
        return self.name.title()
    async def ask(self, question):
        self.check_open()
        return await self._ask(question)
    async def _ask(self, question):
        await self.ask(self.stream)
    async def adestroy(self):
        await self.stream.send_all(b"bye")

@dataclasses.dataclass(frozen=True)
class Better(Session, typing.Generic[T]):
    more: int
    async def adestroy(self):
        await super().adestroy()

@attrs.define
class Defined(AsyncDestructor):
    stream: TlsStream
    def __attrs_post_init__(self):
        self.stream.farewell = b"bye"

@attrs.frozen
class Noted(AsyncDestructor):
    def __attrs_post_init__(self):
        registry.append(self)

class Registered(ringtls.AsyncDestructor):
    def __init__(self):
        registry.append(self)

class Registering(ringtls.AsyncDestructor):
    def run(self):
        self.register()
    def register(self):
        registry.append(self)

class Mixed(Mixin, AsyncDestructor):
    pass

@decorated
class Decorated(AsyncDestructor):
    pass

async def use(first, stream, *, last=None):
    await stream.send_all(first)

async def hand_on(stream):
    await use(b"x", stream)
    await hand_on(stream)

async def serve(stream):
    async with stream:
        pass

@decorated
async def decorated(stream):
    pass
"""

#: Bodies of functions. A comment with a code marks where it is to be found; there are no others.
BAD = """\
class Other:
    TlsStream = None
    async def method(self):
        TlsStream(raw, context)  # RTL101
---
stream = TlsStream(raw, context)  # RTL101
if stream:
    assert stream
while not stream:
    pass
stream
[data async for data in stream]
---
async for data in TlsStream(raw, context):  # RTL101
    pass
---
stream = TlsStream(raw, lambda: stream)  # RTL101
---
stream = TlsStream(raw, context)  # RTL105
try:
    await stream.do_handshake()
    await stream.aclose()
finally:
    pass
---
other(listener := SocketListener(raw))
with listener:  # RTL102
    pass
---
await aclose_forcefully(stream := TlsStream(raw, context))  # RTL103
---
stream = await ringtls.open_tls_over_tcp_stream("host", 443)  # RTL101
await stream.send_all(b"x")
---
stream = await r.open_tcp_stream("host", 443)  # RTL101
---
stream = await connect("host", 443)  # RTL101
async for data in stream:
    print(data)
---
stream = TlsStream(raw, context)  # RTL101
if not stream.session_reused:
    print(f"{stream}", stream.cipher())
assert stream is not None
---
async def make():
    stream = TlsStream(raw, context)  # RTL101
    await stream.send_all(b"x")
stream = None
def change():
    nonlocal stream
    stream = other
---
stream: TlsStream = TlsStream(raw, context)  # RTL101
---
stream = Alias(raw, context)  # RTL101
---
stream = Annotated(raw, context)  # RTL101
---
stream = TlsStream(raw, context)  # RTL101
stream.aclose()
---
defined = Defined(borrowed)  # RTL101
---
session = Session(borrowed)  # RTL101
try:
    await session.ask("?")
finally:
    session.aclose()
---
stream = TlsStream(raw, context)  # RTL101
ringtls.aclose_all(stream)
---
if (stream := TlsStream(raw, context)).session_reused:  # RTL101
    await stream.receive_some()
---
left, right = SocketStream(a), SocketStream(b)  # RTL101
async with right:
    await left.send_all(b"x")
---
SocketStream(raw)  # RTL101
---
await (await connect("host", 443)).send_all(b"x")  # RTL101
---
stream = None or TlsStream(raw, context)  # RTL101
---
listener = SocketListener(raw)
while True:
    stream = await listener.accept()  # RTL101
    print(await stream.receive_some())
---
for listener in await open_tls_over_tcp_listeners(443, context):
    stream = await listener.accept()  # RTL101
---
[listener] = await open_tls_over_tcp_listeners(443, context)
await listener.accept()  # RTL101
---
listeners = await open_tls_over_tcp_listeners(443, context)
await listeners[0].accept()  # RTL101
---
[listener] = await ringtls.open_unix_listeners("path")
await listener.accept()  # RTL101
---
for listener in await ringtls.open_tcp_listeners(80):
    stream = await listener.accept()  # RTL101
---
stream = await ringtls.open_unix_socket("path")  # RTL101
---
async with TlsListener(other, context) as listener:
    await listener.accept()  # RTL101
---
stream = await open_tcp_stream("host", 443)
stream = TlsStream(stream, context)  # RTL101
---
stream = TlsStream(raw, context)  # RTL101
async def send():
    await stream.send_all(b"x")
await send()
---
stream = TlsStream(raw, context)  # RTL101
async with trio.open_nursery() as nursery:
    nursery.start_soon(stream.send_all, b"x")
---
stream = TlsStream(raw, context)  # RTL101
async def other(stream):
    await stream.aclose()
---
stream = TlsStream(raw, context)  # RTL105
await stream.send_all(b"x")
await stream.aclose()
---
stream = TlsStream(raw, context)  # RTL105
with contextlib.suppress(OSError):
    await stream.do_handshake()
    await stream.aclose()
---
stream = TlsStream(raw, context)  # RTL105
with trio.move_on_after(1):
    await stream.send_all(b"x")
stream.close_unclean()
---
with TlsStream(raw, context):  # RTL102
    pass
---
stream = SocketStream(raw)
with stream as same:  # RTL102
    pass
---
with open("file"), await connect("host", 443) as stream:  # RTL102
    pass
---
with TlsListener(other, context) as listener:  # RTL102
    pass
---
async with TlsStream(raw, context) as stream:
    await trio.aclose_forcefully(stream)  # RTL103
---
async with TlsStream(raw, context) as stream, trio.open_nursery() as nursery:
    nursery.start_soon(aclose_forcefully, stream)  # RTL103
---
async def handler(stream: TlsStream) -> None:
    await aclose_forcefully(stream)  # RTL103
---
async def handler(stream: "ringtls.TlsStream[SocketStream]") -> None:
    await aclose_forcefully(stream)  # RTL103
---
async def handler(stream: SocketStream) -> None:
    stream.start_send(b"x")  # RTL104
    await stream.receive_some()
---
async with SocketListener(raw) as listener:
    operation = listener.start_accept()  # RTL104
---
async with SocketStream(raw) as stream:
    sending = receiving = stream.start_receive()
    sending = stream.start_send(b"x")  # RTL104
---
session = Session(raw)  # RTL101
print(f"{await session.ask(3)}", session.name, session.destroy_timeout)
nursery.start_soon(session.ask, 3)
---
Session(raw)  # RTL101
---
Better[int](raw, 3)  # RTL101
---
session = Session(raw)  # RTL105
await session.ask(3)
await session.aclose()
---
with Session(raw):  # RTL102
    pass
---
registering = Registering()  # RTL101
registering.check_open()
---
async def close(session: Session) -> None:
    await session.adestroy()  # RTL109
    with session:  # RTL102
        pass
---
class Eager(Session):
    async def close(self):
        await self.adestroy()  # RTL109
---
session = Session(raw)  # RTL101
await session.adestroy()  # RTL109
---
stream = ringtls.blocking.TlsStream(raw, context)  # RTL101
for data in stream:
    print(data)
---
stream = blocking.open_tls_over_tcp_stream("host", 443)  # RTL105
stream.timeout = 3
stream.send_all(b"x")
stream.close()
---
async with BlockingTlsStream(raw, context) as stream:  # RTL108
    pass
---
def f(stream: blocking.SocketStream):
    async with stream:  # RTL108
        pass
---
async with await connect("host", 443) as stream:
    await stream.send_all(b"x")
    await stream.receive_some()
    stream.farewell = farewell()  # RTL110
return 3
---
with blocking.TlsStream(raw, context) as stream:
    stream.send_all(b"x")
    stream.farewell = b"QUIT"  # RTL110
---
stream = await connect("host", 443)  # RTL106
await stream.send_all(b"x")
stream = await connect("other host", 443)
async with stream:
    pass
---
stream = await connect("host", 443)  # RTL101
stream = None
---
stream = await connect("host", 443)  # RTL106
with trio.move_on_after(1):
    await stream.send_all(b"x")
del stream
stream = await connect("other host", 443)
await stream.aclose()
---
for host in hosts:
    stream = await connect(host, 443)  # RTL106
    if verbose:
        print(await stream.receive_some())
await stream.aclose()
---
stream = await connect("host", 443)  # RTL101
nursery.start_soon(use, b"x", stream)
---
stream = await connect("host", 443)  # RTL101
await use(b"x", stream)
await hand_on(stream)
---
await use(b"x", await connect("host", 443))  # RTL101
---
async with trio.open_nursery() as nursery:
    async with await connect("host", 443) as stream:
        nursery.start_soon(use, b"x", stream)  # RTL107
---
async with trio.open_nursery() as nursery, Session(raw) as session:
    nursery.start_soon(use, b"x", session)  # RTL107
---
stream = TlsStream(raw, context)
async with trio.open_nursery() as nursery:
    async with stream:
        nursery.start_soon(other)
        nursery.start_soon(serve, stream)  # RTL107
---
stream = await ringtls.anyio.connect_tcp("host", 443, tls=True)  # RTL101
await stream.send(b"x")
print(await stream.receive())
---
stream = await ringtls.anyio.connect_tcp("host", 443)  # RTL105
await stream.send_eof()
await stream.aclose()
---
with await ringtls.anyio.connect_tcp("host", 443):  # RTL102
    pass
---
def f(stream: ringtls.anyio.ByteStream):
    with stream:  # RTL102
        pass
---
await anyio.aclose_forcefully(stream := TlsStream(raw, context))  # RTL103
---
stream = blocking.TlsStream(raw, context)  # RTL101
call(use, b"x", stream)
---
stream = blocking.TlsStream(raw, context)  # RTL105
blocking.call(use, b"x", stream)
stream.close()
---
stream = await connect("host", 443)  # RTL105
await stream.send_all(b"x")
await ringtls.relay(stream, other, idle_timeout=3)
---
stream = await connect("host", 443)  # RTL105
another = await connect("other host", 443)
await ringtls.aclose_all(stream, another)
---
try:
    stream = await connect("host", 443)  # RTL105
except OSError:
    return
await stream.send_all(b"x")
await stream.aclose()
---
try:
    stream = await connect("host", 443)  # RTL105
finally:
    other()
await stream.aclose()
---
async def talk(stream: TlsStream) -> None:
    async with stream:
        await stream.send_all(b"x")
        stream.farewell = b"QUIT"  # RTL110
---
async with trio.open_nursery() as nursery:
    async with trio.open_nursery() as nursery, await connect("host", 443) as stream:
        nursery.start_soon(use, b"x", stream)  # RTL107
"""

GOOD = """\
async with await connect("host", 443) as stream:
    stream.farewell = b"QUIT"
    await stream.send_all(b"QUIT")
    stream.farewell = None
---
async with await connect("host", 443) as stream:
    await stream.send_all(b"QUIT")
    stream.farewell = None
---
async with await connect("host", 443) as stream:
    stream.farewell = b"QUIT"
    await stream.send_all(b"x")
    stream.farewell = b"BYE"
---
async def greet(stream: TlsStream) -> None:
    await stream.send_all(b"220 hello")
    stream.farewell = b"421 bye"
---
stream = await connect("host", 443)
await stream.send_all(b"220 hello")
stream.farewell = b"421 bye"
return stream
---
try:
    stream = await connect("host", 443)
except OSError:
    return False
await stream.aclose()
return True
---
try:
    stream = await connect("host", 443)
except OSError:
    return
else:
    await stream.aclose()
---
try:
    try:
        stream = await connect("host", 443)
    except OSError:
        stream = await connect("other host", 443)
except OSError:
    return
await stream.aclose()
---
if other:
    with trio.fail_after(1):
        stream = await connect("host", 443)
else:
    stream = await connect("other host", 443)
await stream.aclose()
---
async with trio.open_nursery() as nursery:
    async with await connect("host", 443) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(use, b"x", stream)
---
async with trio.open_nursery() as nursery:
    nursery = other
    async with await connect("host", 443) as stream:
        nursery.start_soon(use, b"x", stream)
---
class Both(Session):
    def __enter__(self):
        return self
    __exit__ = None
with Both(raw) as both:
    pass
def f(both: Both):
    with both:
        pass
---
async with Mixed() as mixed:
    pass
with mixed:
    pass
---
class Starter(AsyncDestructor):
    def start_work(self):
        pass
async with Starter() as starter:
    starter.start_work()
---
stream = await ringtls.anyio.connect_tcp("host", 443)
await stream.aclose()
---
async with await ringtls.anyio.connect_tcp("host", 443) as stream:
    await stream.send(b"x")
---
stream = await ringtls.anyio.connect_tcp("host", 443)
await other.use(stream.extra(ringtls.anyio.RingAttribute.stream))
---
stream = wrap_stream(await connect("host", 443))
await stream.send(b"x")
---
async with await connect("host", 443) as stream:
    await ringtls.anyio.ByteStream(stream).send(b"x")
---
stream = blocking.TlsStream(raw, context)
call(serve, stream)
---
call(unknown, blocking.TlsStream(raw, context))
---
async def greet(stream: blocking.TlsStream) -> None:
    async with stream:
        await stream.send_all(b"x")
---
stream = await connect("host", 443)
await ringtls.relay(stream, other)
---
stream = await connect("host", 443)
nursery.start_soon(ringtls.relay, stream, other)
---
async with await connect("host", 443) as stream:
    another = await connect("other host", 443)
    await ringtls.relay(stream, another)
---
stream = await connect("host", 443)
relaying = ringtls.relay(stream, other)
await relaying
---
async with await connect("host", 443) as stream:
    stream.farewell = b"QUIT"
    await stream.send_all(b"x")
---
async with await connect("host", 443) as stream:
    await stream.send_all(b"x")
    stream.farewell = b"QUIT"
    await stream.receive_some()
---
async with await connect("host", 443) as stream:
    await stream.send_all(b"x")
    if stream.session_reused:
        stream.farewell = b"QUIT"
---
async with await connect("host", 443) as stream:
    stream.farewell = b"QUIT"
---
async with await connect("host", 443) as stream, await connect("other host", 443) as other:
    await other.send_all(b"x")
    stream.farewell = b"QUIT"
---
async with Session(raw) as session:
    await session.ask(3)
---
session = Session(raw)
self.session = session
---
session = Session(raw)
try:
    await session.ask(3)
finally:
    await session.aclose()
---
Registered()
---
registering = Registering()
registering.run()
---
Mixed()
---
Decorated()
---
session = Session(raw)
await session.unknown(session)
---
session = Session(raw)
await session.ask(session)
---
with blocking.TlsStream(raw, context) as stream:
    for data in stream:
        print(data)
---
stream = blocking.TlsStream(raw, context)
try:
    stream.send_all(b"x")
finally:
    stream.close()
---
stream = blocking.TlsStream(raw, context)
with contextlib.closing(stream):
    pass
---
stream = await connect("host", 443)
await stream.aclose()
stream = await connect("other host", 443)
await stream.aclose()
---
stream = await connect("host", 443)
stream = TlsStream(stream, context)
async with stream:
    pass
---
stream = await connect("host", 443)
if stream.session_reused:
    stream = wrap(stream)
async with stream:
    pass
---
async def close():
    await stream.aclose()
stream = await connect("host", 443)
await close()
stream = await connect("other host", 443)
await close()
---
for attempt in range(3):
    stream = await connect("host", 443)
    if stream.session_reused:
        break
async with stream:
    pass
---
for attempt in range(3):
    try:
        stream = await connect("host", 443)
    except OSError:
        pass
async with stream:
    pass
---
while not stream:
    stream = await connect("host", 443)
async with stream:
    pass
---
for host in hosts:
    stream = await connect(host, 443)
    streams.append(stream)
---
stream = await connect("host", 443)
nursery.start_soon(serve, stream)
---
stream = await connect("host", 443)
nursery.start_soon(decorated, stream)
---
stream = await connect("host", 443)
nursery.start_soon(unknown, stream)
---
stream = await connect("host", 443)
nursery.start_soon(Session, stream)
---
stream = await connect("host", 443)
nursery.start_soon(use, *stream)
---
stream = await connect("host", 443)
await use(b"x", other, last=stream)
---
async with await connect("host", 443) as stream, trio.open_nursery() as nursery:
    nursery.start_soon(use, b"x", stream)
---
async with trio.open_nursery() as nursery:
    async with await connect("host", 443) as stream:
        nursery.start_soon(use, b"x", stream)
        await stream.receive_some()
---
async with trio.open_nursery() as nursery:
    async with await connect("host", 443) as stream:
        nursery.start_soon(use, b"x", other)
---
async with (stream := await connect("host", 443)):
    await stream.send_all(b"x")
---
await (stream := await connect("host", 443)).aclose()
---
stream = TlsStream(raw, context)
def change():
    nonlocal stream
    stream = other
await aclose_forcefully(stream)
---
async def connect():
    pass
await connect()
---
match other:
    case [TlsStream]:
        TlsStream(raw, context)
    case [*SocketStream]:
        SocketStream(raw)
---
from .ringtls import TlsStream
TlsStream(raw, context)
---
first, *rest, last = SocketStream(a), SocketStream(b)
---
stream = TlsStream(raw, context)
@handle(stream)
def handler(stream):
    pass
---
connecting = connect("host", 443)
---
stream = TlsStream(raw, context)
await stream.do_handshake()
nursery.start_soon(stream.aclose)
---
stream = TlsStream(raw, context)
await stream.do_handshake()
closing = stream.aclose()
---
stream = TlsStream(raw, context)
await stream.do_handshake()
closing = ringtls.aclose_all(stream)
---
noted = Noted()
---
async with await connect("host", 443) as stream:
    await stream.send_all(b"x")
---
stream = await connect("host", 443)
await stream.do_handshake()
async with stream:
    pass
---
async with trio.open_nursery() as nursery, TlsStream(raw, context) as stream:
    pass
---
async with contextlib.AsyncExitStack() as stack:
    stream = await stack.enter_async_context(await connect("host", 443))
    other = TlsStream(raw, context)
    stack.push_async_callback(other.aclose)
---
stream = await connect("host", 443)
try:
    await stream.send_all(b"x")
finally:
    with trio.move_on_after(1):
        await stream.aclose()
---
stream = await connect("host", 443)
try:
    await stream.do_handshake()
except BaseException:
    await stream.aclose()
    raise
---
stream = await connect("host", 443)
await stream.aclose()
---
stream = await connect("host", 443)
with contextlib.suppress(OSError):
    try:
        await stream.aclose()
    except KeyError:
        pass
---
stream = await connect("host", 443)
try:
    pass
finally:
    stream.close_unclean()
---
return await connect("host", 443)
---
return TlsStream(await open_tcp_stream("host", 443), context)
---
stream = TlsStream(raw, context)
await stream.do_handshake()
return "name", stream
---
stream = TlsStream(raw, context)
yield stream
---
yield TlsStream(raw, context)
---
self.stream = await connect("host", 443)
---
streams["name"] = await connect("host", 443)
---
streams = [SocketStream(raw) for raw in sockets]
---
stream = SocketStream(raw)
streams.append(stream)
---
stream = SocketStream(raw)
streams[stream] = 3
---
stream = SocketStream(raw)
other = stream
---
stream = SocketStream(raw)
handle(stream=stream)
---
stream = SocketStream(raw)
handle(*[stream])
---
stream = TlsStream(raw, context)
below, rest = await stream.unwrap()
---
stream = TlsStream(raw, context)
await stream.transport_stream.aclose()
---
stream = TlsStream(raw, context)
close = stream.aclose
---
stream = TlsStream(raw, context)
def handler(stream=stream):
    pass
---
stream = TlsStream(raw, context)
async def close():
    await stream.aclose()
await use(close)
---
stream = TlsStream(raw, context)
do(lambda: stream)
---
stream = None
async def connecting():
    nonlocal stream
    stream = await connect("host", 443)
await connecting()
await stream.aclose()
---
async def connecting():
    global stream
    stream = await connect("host", 443)
async def ask():
    await stream.send_all(b"x")
---
async def connecting():
    global stream
    async def connect_now():
        global stream
        stream = await connect("host", 443)
    await connect_now()
---
def connecting():
    stream = None
    async def connect_now():
        async def really():
            nonlocal stream
            stream = await connect("host", 443)
        await really()
    return connect_now, lambda: stream
---
listener = SocketListener(raw)
while True:
    stream = await listener.accept()
    nursery.start_soon(handle, stream)
---
await unknown.accept()
---
async def handler(stream: TlsStream) -> None:
    await stream.send_all(b"x")
---
with pytest.raises(ValueError):
    TlsStream(raw, context, server_hostname="host")
---
with pytest.raises(TypeError), TlsStream(raw, context):
    pass
---
with self.assertRaises(OSError):
    stream = await connect("host", 443)
---
with pytest.warns(ResourceWarning):
    stream = await connect("host", 443)
---
class TlsStream: pass
TlsStream(raw, context)
---
def make(TlsStream):
    TlsStream(raw, context)
---
try:
    from ringtls import TlsStream
except ImportError:
    TlsStream = None
stream = TlsStream(raw, context)
---
from .streams import SocketStream
stream = SocketStream(raw)
---
a = b
b = a
stream = a.TlsStream(raw, context)
with b:
    pass
---
import ringtls.blocking
with ringtls.blocking.TlsStream(raw, context) as stream:
    pass
---
match TlsStream(raw, context):
    case stream:
        await stream.aclose()
---
stream = TlsStream(raw, context) if secure else SocketStream(raw)
async with stream:
    pass
---
async with SocketStream(raw) as stream:
    await trio.aclose_forcefully(stream)
    await trio.aclose_forcefully(unknown)
---
async def handler(stream: TlsStream) -> None:
    stream = wrap(stream)
    await trio.aclose_forcefully(stream)
---
async def handler(stream: SocketStream) -> None:
    operation = stream.start_send(b"x")
    await stream.receive_some()
    await operation
---
async def handler(stream: SocketStream) -> None:
    operations.append(stream.start_send(b"x"))
    await stream.start_send(b"x")
    nursery.start_soon(stream.start_receive().wait)
    unknown.start_send(b"x")
    stream.start = 3
---
if TlsStream:
    pass
---
async def handler(x: "not an expression", y: 3, z: "SocketStream") -> None:
    for each in x, y, z:
        await aclose_forcefully(x)
        await aclose_forcefully(y)
        await aclose_forcefully(z)
"""


def modules(text: str) -> list[str]:
    return [
        f"{HEAD}async def function(self, raw, a, b, context, other):\n{indent(body, '    ')}"
        for body in text.split("---\n")
    ]


def found_in(source: str) -> list[tuple[int, str]]:
    return sorted((line, text[:6]) for line, _, text, _ in Checker(ast.parse(source)).run())


def expected_in(source: str) -> list[tuple[int, str]]:
    return [
        (number, match[1])
        for number, line in enumerate(source.splitlines(), 1)
        if (match := re.search(r"# (RTL\d+)$", line))
    ]


@pytest.mark.parametrize("source", modules(BAD))
def test_what_is_found(source: str) -> None:
    assert expected_in(source)
    assert found_in(source) == expected_in(source)


@pytest.mark.parametrize("source", modules(GOOD))
def test_what_is_fine(source: str) -> None:
    assert found_in(source) == []


def test_each_code_is_found_somewhere() -> None:
    assert {code for source in modules(BAD) for _, code in found_in(source)} == set(RULES)


def test_the_article() -> None:
    [(_, _, text, _)] = Checker(ast.parse(f"{HEAD}with Session(raw):\n    pass\n")).run()
    assert text == "RTL102 'with' can't close an AsyncDestructor: use 'async with'"


def test_a_deep_tree() -> None:
    assert found_in(f"{HEAD}x = {' + '.join(['1'] * 900)}\n") == []


EXAMPLE = dedent("""\
    import trio
    from ringtls import TlsStream


    async def handler(stream: TlsStream) -> None:
        await trio.aclose_forcefully(stream)
        await trio.aclose_forcefully(stream)  # noqa
        await trio.aclose_forcefully(stream)  # noqa: E501
        await trio.aclose_forcefully(stream)  # noqa:E501,RTL103
        await trio.aclose_forcefully(stream)  # NOQA: RTL1


    async def connect(raw, context):
        stream = TlsStream(raw, context)
        await stream.do_handshake()
""")

REPORT = """\
{path}:6:11: RTL103 aclose_forcefully() ends a TlsStream like aclose(): \
to reset the connection there is close_unclean()
{path}:8:11: RTL103 aclose_forcefully() ends a TlsStream like aclose(): \
to reset the connection there is close_unclean()
{path}:14:14: RTL101 this TlsStream is never closed: enter it with 'async with'
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE)
    return path


def test_by_itself(example: Path) -> None:
    result = run("-m", "ringtls.lint", example)
    assert result.stdout == REPORT.format(path=example)
    assert result.stderr == ""
    assert result.returncode == 1


def test_for_github(tmp_path: Path) -> None:
    path = tmp_path / "100%, or: so.py"
    path.write_text(EXAMPLE)
    result = run("-m", "ringtls.lint", "--format", "github", path)
    lines = result.stdout.splitlines()
    quoted = f"{tmp_path}/100%25%2C or%3A so.py"
    assert len(lines) == 3
    assert lines[2] == (
        f"::error title=RTL101,file={quoted},line=14,col=14::{tmp_path}/100%25, or: so.py:14:14: "
        "RTL101 this TlsStream is never closed: enter it with 'async with'"
    )
    assert result.returncode == 1


def test_as_json(example: Path) -> None:
    result = run("-m", "ringtls.lint", "--format", "json", example, example.parent / "missing.py")
    found = json.loads(result.stdout)
    assert len(found) == 3
    assert found[2] == {
        "code": "RTL101",
        "filename": str(example),
        "location": {"row": 14, "column": 14},
        "message": "this TlsStream is never closed: enter it with 'async with'",
    }
    assert "missing.py: can't be checked" in result.stderr
    assert result.returncode == 2


def test_as_json_nothing_found(tmp_path: Path) -> None:
    result = run("-m", "ringtls.lint", "--format", "json", tmp_path)
    assert json.loads(result.stdout) == []
    assert result.returncode == 0


def test_through_flake8(example: Path) -> None:
    result = run("-m", "flake8", "--isolated", "--max-line-length=100", example)
    assert result.stdout == REPORT.format(path=example)
    assert result.stderr == ""
    assert result.returncode == 1


def test_a_directory(example: Path) -> None:
    package = example.parent / "package"
    hidden = example.parent / ".hidden"
    for directory in (package, hidden):
        directory.mkdir()
        (directory / "module.py").write_text(EXAMPLE)
    (package / "notes.txt").write_text("no Python")
    result = run("-m", "ringtls.lint", example.parent)
    module = package / "module.py"
    assert result.stdout == REPORT.format(path=example) + REPORT.format(path=module)


def test_what_is_no_file_in_a_directory(example: Path) -> None:
    """A FIFO, which nobody writes into, and a directory of such a name, with a module."""
    os.mkfifo(example.parent / "fifo.py")
    package = example.parent / "package.py"
    package.mkdir()
    (package / "module.py").write_text(EXAMPLE)
    result = run("-m", "ringtls.lint", example.parent)
    module = package / "module.py"
    assert result.stdout == REPORT.format(path=example) + REPORT.format(path=module)
    assert (result.stderr, result.returncode) == ("", 1)


@pytest.mark.parametrize("command", ["ringtls.lint", "flake8"])
@pytest.mark.parametrize("line", ["# flake8: noqa", "x = 1\n    # FLAKE8=NOQA"])
def test_a_file_that_is_silenced(example: Path, command: str, line: str) -> None:
    example.write_text(f"{line}\n{EXAMPLE}")
    result = run("-m", command, example)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_a_line_with_code_does_not_silence_its_file(example: Path) -> None:
    example.write_text(f"{EXAMPLE}x = '# flake8: noqa'\n")
    assert run("-m", "ringtls.lint", example).stdout == REPORT.format(path=example)


def test_nothing_found(tmp_path: Path) -> None:
    path = tmp_path / "fine.py"
    path.write_text('# coding: latin-1\nx = "\\d"\n# \xe9\n', encoding="latin-1")
    result = run("-m", "ringtls.lint", path)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_files_that_can_not_be_checked(example: Path) -> None:
    wrong = {
        "syntax.py": b"x = (\n",
        "nul.py": b"x = 1\0\n",
        "encoding.py": b"# coding: klingon\n",
        "bytes.py": b'x = "\xff"\n',
        "deep.py": b"x = " + b"-" * 100_000 + b"1\n",
    }
    for name, source in wrong.items():
        (example.parent / name).write_bytes(source)
    (example.parent / "broken.py").symlink_to("nothing")
    result = run("-m", "ringtls.lint", example.parent, example.parent / "missing.py")
    assert result.stdout == REPORT.format(path=example)
    lines = result.stderr.splitlines()
    assert len(lines) == 7
    for name in (*wrong, "broken.py", "missing.py"):
        assert any(line.startswith(f"{example.parent / name}: ") for line in lines), name
    assert result.returncode == 2


@pytest.mark.parametrize(
    ("encoding", "name", "printed"),
    [("utf-8", b"\xff.py", r"\udcff.py"), ("ascii", b"\xc3\xa9.py", r"\xe9.py")],
)
def test_a_name_that_can_not_be_printed(
    example: Path, encoding: str, name: bytes, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    example.rename(example.parent / os.fsdecode(name))
    result = run("-m", "ringtls.lint", example.parent)
    assert result.stdout == REPORT.format(path=example.parent / printed)
    assert (result.stderr, result.returncode) == ("", 1)


def test_no_path_is_an_error() -> None:
    result = run("-m", "ringtls.lint")
    assert result.returncode == 2
    assert "usage: python -m ringtls.lint" in result.stderr
