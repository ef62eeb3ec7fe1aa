"""What a call raises makes no reference cycle: what the caller had is freed when it is forgotten.

So a stream that is dropped after a cancellation ends at once, and not at some later collection.
"""

from __future__ import annotations

import gc
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import trio

from ringtls import AsyncDestructor, TlsStream, _combinators, aclose_all, blocking, must_complete
from ringtls._connecting import connect_to_any
from ringtls._drivers.blocking import BlockingDriver
from ringtls._drivers.trio import TrioDriver

from .conftest import Contexts
from .support.clogging import clog
from .support.peer import meet
from .support.streams import handshaken, reset, tcp_pair
from .support.waiting import cut_off, until


class Owned:
    """What the caller has."""


class OwnedText(str):
    """A piece of that."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def watched(call: Callable[[], Awaitable[object]], seen: list[ref[Owned]]) -> None:
    owned = Owned()
    seen.append(ref(owned))
    await call()


async def assert_frees_when_cancelled(call: Callable[[], Awaitable[object]]) -> None:
    seen: list[ref[Owned]] = []
    await cut_off(watched, call, seen)
    assert seen[0]() is None


async def test_a_cancelled_receive(contexts: Contexts) -> None:
    client, server = await handshaken(contexts)
    async with client, server:
        await assert_frees_when_cancelled(client.receive_some)


async def test_a_cancelled_send(contexts: Contexts) -> None:
    client, server = await handshaken(contexts, 4096)
    async with client, server:
        await clog(client)
        await assert_frees_when_cancelled(lambda: client.send_all(bytes(1000)))


async def test_must_complete_that_raises() -> None:
    async def fail() -> None:
        raise KeyError

    seen: list[ref[Owned]] = []
    with suppress(KeyError):
        await watched(lambda: must_complete(fail), seen)
    assert seen[0]() is None


class Failing(AsyncDestructor):
    async def adestroy(self) -> None:
        raise KeyError


class FailingTwice(Failing):
    destroy_timeout = property(lambda self: -1.0)


class FailingResource(trio.abc.AsyncResource):
    async def aclose(self) -> None:
        raise KeyError


class SlowResource(trio.abc.AsyncResource):
    async def aclose(self) -> None:
        await trio.sleep_forever()


class Owner(AsyncDestructor):
    def __init__(self) -> None:
        self.resource = FailingResource()


class Slow(AsyncDestructor):
    destroy_timeout = 0.0

    async def adestroy(self) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("cls", [Failing, FailingTwice, Owner, Slow])
async def test_a_destructor_that_fails(cls: type[AsyncDestructor]) -> None:
    value = cls()
    with suppress(ExceptionGroup):
        await value.aclose()
    seen = ref(value)
    del value
    assert seen() is None


async def test_a_resource_that_closes_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_combinators, "GRACE", 0)

    async def close(resources: list[SlowResource]) -> None:
        await aclose_all(*resources)
        await trio.lowlevel.checkpoint()

    resources = [SlowResource()]
    await cut_off(close, resources)
    seen = ref(resources.pop())
    assert seen() is None


async def test_aclose_all_that_raises() -> None:
    resources = [FailingResource(), FailingResource()]
    with pytest.raises(ExceptionGroup):
        await aclose_all(*resources)
    seen = [ref(each) for each in resources]
    resources.clear()
    assert [each() for each in seen] == [None, None]


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore:unclosed Failing:ResourceWarning")
async def test_a_dropped_destructor_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("ringtls"), "disabled", True)  # pytest keeps records
    seen = ref(Failing())
    await until(lambda: seen() is None)


async def test_no_address_that_answers(tmp_path: Path) -> None:
    path = OwnedText(tmp_path / "missing")
    with suppress(OSError):
        await connect_to_any([(socket.AF_UNIX, path)] * 2)
    seen = ref(path)
    del path
    assert seen() is None


def test_a_blocking_receive_that_takes_too_long() -> None:
    ours, theirs = tcp_pair()

    def use() -> ref[Owned]:
        owned = Owned()
        with pytest.raises(TimeoutError):
            stream.receive_some()
        return ref(owned)

    with theirs, blocking.SocketStream(ours) as stream:
        stream.timeout = 0
        assert use()() is None


def test_a_thread_that_has_ended() -> None:
    seen: list[ref[BlockingDriver]] = []

    def use() -> None:
        ours, theirs = tcp_pair()
        with theirs, blocking.SocketStream(ours):
            seen.append(ref(BlockingDriver.current()))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen[0]() is None


@pytest.mark.ringtls_allow_unclosed
async def test_c8_a_stream_whose_send_met_a_reset_is_dropped(contexts: Contexts) -> None:
    stream, peer = await meet(contexts)
    reset(peer.sock)

    async def use(stream: TlsStream[Any]) -> None:
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(bytes(100_000))

    await use(stream)
    with pytest.warns(ResourceWarning, match="unclosed stream"):
        del stream
    await until(lambda: not TrioDriver.current().statistics().connections_open)
