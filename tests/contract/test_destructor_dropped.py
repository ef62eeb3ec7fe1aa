"""A4: values that nobody closed, at any time of a run, in any thread, and of another process."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import pytest
import trio
import trio.testing
from trio.to_thread import run_sync as in_thread

from ringtls import TlsStream, _combinators, aclose_all, borrowed, statistics
from ringtls._drivers.trio import TrioDriver
from ringtls._streams import leaks

from ..conftest import Contexts
from ..support.peer import End, meet
from ..support.processes import exit_status, fork
from ..support.streams import socket_streams
from ..support.values import Value, whole
from ..support.waiting import until
from .test_combinators import Resource, Stuck

pytestmark = pytest.mark.ringtls_allow_unclosed


@contextmanager
def warned(text: str) -> Iterator[None]:
    """There is such a warning, and perhaps others: of parts that were finalized before."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert any(re.search(text, each) for each in texts), texts


# In a run that goes on


@pytest.mark.parametrize("how", ["reference", "cycle", "thread", "cycle in a thread"])
async def test_a4_dropped(how: str) -> None:
    log: list[str] = []
    values = [Value("value", log, Value("part", log))]
    gone = weakref.ref(values[0])

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    def drop() -> None:
        values.clear()
        gc.collect()

    if "cycle" in how:
        values[0].itself = [values[0]]  # type: ignore[attr-defined]
    with warned(r"unclosed Value, made at .*dropped.py:\d+;"):
        if "thread" in how:
            thread = threading.Thread(target=drop)
            thread.start()
            thread.join()
        else:
            drop()
    await until(lambda: "end part" in log)
    await until(is_gone)
    assert log == whole("value", "part")


@pytest.mark.parametrize("parent_first", [True, False])
async def test_a4_a_family_in_a_cycle(parent_first: bool) -> None:
    """Whoever of them Python finalizes first: none is destroyed twice, or before its owner."""
    log: list[str] = []
    if parent_first:
        parent = Value("parent", log)
        child = Value("child", log, Value("grandchild", log))
    else:
        child = Value("child", log, Value("grandchild", log))
        parent = Value("parent", log)
    parent.part = child  # type: ignore[attr-defined]
    parent.itself = parent  # type: ignore[attr-defined]
    del parent, child
    with warned("unclosed Value"):
        gc.collect()
    await until(lambda: "end grandchild" in log)
    assert log == whole("parent", "child", "grandchild")


async def test_a4_who_owns_each_other() -> None:
    log: list[str] = []
    parent = Value("parent", log)
    parent.part = child = Value("child", log)  # type: ignore[attr-defined]
    child.owner = parent  # type: ignore[attr-defined]
    del parent, child
    with warned("unclosed Value"):
        gc.collect()
    await until(lambda: "end child" in log)
    await until(lambda: "end parent" in log)
    assert sorted(log) == sorted(whole("parent", "child"))


class Polite(Value):
    """Says goodbye over a stream."""

    stream: TlsStream[Any]

    async def adestroy(self) -> None:
        await self.stream.send_all(b"goodbye")
        assert await self.stream.receive_some() == b"goodbye, too"
        self.log.append("polite")


@pytest.mark.parametrize("how", ["reference", "cycle", "other order"])
@pytest.mark.usefixtures("transport")
async def test_a4_its_streams_live_until_it_has_ended(contexts: Contexts, how: str) -> None:
    log: list[str] = []
    if how == "other order":  # in which Python finalizes them
        value = Polite("value", log)
    stream, peer = await meet(contexts)
    if how != "other order":
        value = Polite("value", log)
    value.stream = stream
    if how != "reference":
        value.itself = value  # type: ignore[attr-defined]
    del stream
    with warned("unclosed Polite"):
        del value
        gc.collect()
    assert await in_thread(peer.receive, 7) == b"goodbye"
    await in_thread(peer.send, b"goodbye, too")
    end = await in_thread(peer.end)
    assert end.is_clean
    assert end.data == b""
    assert log == ["polite"]


@pytest.mark.usefixtures("transport")
async def test_a4_a_stream_that_was_let_go_by_the_end(contexts: Contexts) -> None:
    """It was dropped in a cycle with its owner, which then did not close it."""
    stream, peer = await meet(contexts)

    class Careless(Value):
        stream: TlsStream[Any]

        async def adestroy(self) -> None:
            del self.stream
            await super().adestroy()

    log: list[str] = []
    value = Careless("value", log)
    value.stream = stream
    value.itself = value  # type: ignore[attr-defined]
    del stream
    with warned("unclosed Careless"):
        del value
        gc.collect()
    assert (await in_thread(peer.end)).is_clean
    assert log == whole("value")


async def test_a4_what_it_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    error = SystemExit()

    class Failing(Value):
        async def adestroy(self) -> None:
            await super().adestroy()
            raise error

    with warned("unclosed Failing"):
        Failing("value", log, Resource("bad", log, OSError("bad")))
    await until(lambda: caplog.records)
    assert log == [*whole("value"), "begin bad"]
    [record] = caplog.records
    assert "destroying Failing, made at " in record.getMessage()
    assert record.exc_info is not None
    raised = record.exc_info[1]
    assert isinstance(raised, BaseExceptionGroup)
    assert [type(each) for each in raised.exceptions] == [SystemExit, OSError]


async def test_a4_bounded_what_is_not_ours(autojump_clock: trio.abc.Clock) -> None:
    log: list[str] = []
    with warned("unclosed Value"):
        Value("value", log, Stuck("stuck", log))
    await trio.sleep(20)
    assert log == [*whole("value"), "stuck closed at 5"]


@pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a4_where_warnings_are_errors() -> None:
    log: list[str] = []
    Value("value", log)
    await until(lambda: "end value" in log)


def test_c16_a4_where_giving_a_warning_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As it does where logging captures warnings, and one of its filters raises."""

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError

    log: list[str] = []
    kept: list[Value] = []

    async def main() -> str:
        kept.extend([Value("first", log), Value("second", log)])
        return "result"

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", fail)
        assert trio.run(main) == "result"
        monkeypatch.undo()
    assert sorted(log) == sorted(whole("first", "second"))
    texts = [record.getMessage() for record in caplog.records]
    assert all("test_destructor_dropped.py:" in each and "KeyError" in each for each in texts)
    assert len(texts) == 2


async def test_a4_closed_by_nobody_and_then_by_somebody() -> None:
    """Dropped, and taken up again before its end has begun."""
    log: list[str] = []
    kept: list[Value] = []
    value = Value("value", log)
    value.itself = value  # type: ignore[attr-defined]
    weak = weakref.WeakSet([value])
    with warned("unclosed Value"):
        del value
        gc.collect()
    kept.extend(each for each in gc.get_objects() if type(each) is Value)
    await kept.pop().aclose()
    assert log == whole("value")
    assert not weak


# At the end of the run


def test_a4_the_run_waits() -> None:
    log: list[str] = []

    async def main() -> None:
        Value("value", log, Value("part", log))

    with warned("unclosed Value"):
        trio.run(main)
    assert log == whole("value", "part")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("owner_first", [False, True])
def test_a4_open_at_the_end_of_the_run(owner_first: bool, fails: bool) -> None:
    """The owner first, and nobody is warned of the part."""
    log: list[str] = []
    kept: list[Value] = []

    async def main() -> None:
        owner = Value("owner", log) if owner_first else None
        part = Value("part", log, Resource("resource", log))
        owner = owner or Value("owner", log)
        owner.part = part  # type: ignore[attr-defined]
        kept.append(owner)
        if fails:
            raise KeyError

    with pytest.warns(ResourceWarning) as caught:
        try:
            trio.run(main)
        except KeyError:
            assert fails
    assert ["unclosed Value" in str(warning.message) for warning in caught] == [True]
    assert log == whole("owner", "part", "resource")
    with pytest.raises(trio.ClosedResourceError):
        kept[0].check_open()


def test_a4_owners_of_each_other_at_the_end_of_the_run() -> None:
    log: list[str] = []
    kept: list[Value] = []

    async def main() -> None:
        left, right = Value("left", log), Value("right", log)
        left.part, right.part = right, left  # type: ignore[attr-defined]
        kept.append(left)

    with warned("unclosed Value"):
        trio.run(main)
    assert log == whole("left", "right")


def test_a4_it_may_use_threads_and_make_values_at_the_end_of_the_run() -> None:
    """Threads come back by trio's run_sync_soon, which trio has stopped by then."""
    log: list[str] = []
    kept: list[Value] = []

    class Busy(Value):
        async def adestroy(self) -> None:
            kept.append(Value("made late", log))
            Value("dropped late", log)
            async with await trio.open_file(os.devnull) as file:
                self.log.append(f"read {await file.read()!r}")
            await super().adestroy()

    async def main() -> None:
        kept.append(Busy("busy", log))

    with warned("unclosed Value"):
        trio.run(main)
    assert "read ''" in log
    for name in ("busy", "made late", "dropped late"):
        assert [line for line in log if line.endswith(name)] == whole(name)


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.usefixtures("transport")
def test_a4_streams_end_after_it(contexts: Contexts, owned: bool) -> None:
    """Also those that it does not own."""
    log: list[str] = []
    kept: list[object] = []
    ends: list[End] = []

    async def main() -> None:
        stream, peer = await meet(contexts)
        kept.append(stream)
        value = Polite("value", log)
        value.stream = stream if owned else borrowed(stream)
        kept.append(value)

        def talk() -> None:
            assert peer.receive(7) == b"goodbye"
            peer.send(b"goodbye, too")
            ends.append(peer.end())

        thread = threading.Thread(target=talk)
        kept.append(thread)
        thread.start()

    with warned("unclosed Polite"):
        trio.run(main)
    thread = kept[2]
    assert isinstance(thread, threading.Thread)
    thread.join()
    assert log == ["polite"]
    assert ends[0].is_clean
    assert ends[0].data == b""


@pytest.mark.filterwarnings("error")
def test_a4_an_async_generator_closes_it_at_the_end_of_the_run() -> None:
    """Nobody is warned then."""
    log: list[str] = []
    kept: list[AsyncIterator[None]] = []

    async def generator() -> AsyncIterator[None]:
        async with Value("value", log, Value("part", log)):
            yield

    async def main() -> None:
        kept.append(generator())
        await anext(kept[0])

    trio.run(main)
    assert log == whole("value", "part")


@pytest.mark.parametrize("how", ["dropped", "kept"])
def test_a4_made_when_an_async_generator_is_finalized(how: str) -> None:
    """It is the first that the run has of ringtls."""
    log: list[str] = []
    kept: list[object] = []

    async def generator() -> AsyncIterator[None]:
        try:
            yield
        finally:
            value = Value("value", log)
            if how == "kept":
                kept.append(value)
            del value

    async def main() -> None:
        generating = generator()
        kept.append(generating)
        await anext(generating)

    with warned("unclosed Value"):
        trio.run(main)
    assert log == whole("value")


def test_a3_bounded_after_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where run_sync_soon wakes nobody any more: trio is told of a deadline all the same."""
    monkeypatch.setattr(_combinators, "GRACE", 0.01)
    log: list[str] = []
    kept: list[object] = []

    class Late(Value):
        async def adestroy(self) -> None:
            with pytest.raises(trio.RunFinishedError):
                trio.lowlevel.current_trio_token().run_sync_soon(bool)
            with trio.move_on_after(0.01):
                await aclose_all(Stuck("stuck", []))
            if trio.current_effective_deadline() > -inf:
                log.append("ended in time")

    async def generator() -> AsyncIterator[None]:
        try:
            yield
        finally:
            kept.append(Late("value", log))

    async def main() -> None:
        kept.append(generator())
        await anext(kept[0])  # type: ignore[call-overload]

    with warned("unclosed Late"):
        trio.run(main)
    assert log == ["ended in time"]


def test_a4_cancelled_at_the_end_of_the_run(autojump_clock: trio.abc.Clock) -> None:
    """It is bounded there, too."""
    log: list[str] = []
    kept: list[Value] = []

    class Endless(Value):
        async def adestroy(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                log.append(f"stopped at {trio.current_time():g}")

    async def main() -> None:
        kept.append(Endless("value", log, Stuck("stuck", log)))

    with warned("unclosed Endless"):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert log == ["stopped at 5", "stuck closed at 10"]


def test_a4_dropped_in_a_thread_while_the_run_ends() -> None:
    log: list[str] = []
    dropped = threading.Event()

    class Slow(Value):
        async def adestroy(self) -> None:
            await trio.to_thread.run_sync(drop)
            await super().adestroy()

    kept: list[Value] = []

    def drop() -> None:
        kept.pop()
        dropped.set()

    async def main() -> None:
        kept.append(Slow("slow", log))
        kept.append(Value("value", log))
        kept[0].itself = kept[0]  # type: ignore[attr-defined]
        del kept[0]

    with warned("unclosed"):
        trio.run(main)
    assert dropped.is_set()
    for name in ("slow", "value"):
        assert [line for line in log if line.endswith(name)] == whole(name)


@pytest.mark.parametrize("when", ["before", "in adestroy", "in the glue"])
def test_a4_the_run_crashes(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be done any more: it is let go, and nobody waits."""
    # pytest keeps records, and what trio's own tasks raise
    monkeypatch.setattr(logging.getLogger("ringtls"), "disabled", True)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    log: list[str] = []
    kept: list[Value] = []

    class Waiting(Value):
        async def adestroy(self) -> None:
            crashing.append(True)
            await trio.sleep_forever()

    crashing: list[bool] = []

    class Broken(trio.abc.Clock):
        def start_clock(self) -> None:
            pass

        def current_time(self) -> float:
            if crashing:
                raise KeyError
            return 0

        def deadline_to_sleep_time(self, deadline: float) -> float:
            return 0

    async def main() -> None:
        waiting = Waiting("waiting", log)
        kept.append(waiting)
        if when == "in the glue":
            kept[0] = Value("value", log, waiting)
        if when == "before":
            crashing.append(True)
            await trio.lowlevel.checkpoint()
        await kept[0].aclose()

    open_before = leaks.still_open.copy()
    with pytest.raises(trio.TrioInternalError):
        trio.run(main, clock=Broken())
    assert leaks.still_open == open_before
    gone = weakref.ref(kept[0])
    with pytest.raises(trio.ClosedResourceError):
        kept[0].check_open()
    kept.clear()
    gc.collect()
    gc.collect()  # what was finalized by the first, in Python 3.15
    assert gone() is None
    assert log == (whole("value") if when == "in the glue" else [])


def test_a4_made_by_the_end_of_a_stream_that_is_not_ours(contexts: Contexts) -> None:
    """After all others, at the very end of the run."""
    log: list[str] = []
    kept: list[object] = []

    class Strange(trio.abc.Stream):
        async def aclose(self) -> None:
            kept.append(Value("late", log))

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            raise NotImplementedError

        async def wait_send_all_might_not_block(self) -> None:
            raise NotImplementedError

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return b""

    async def main() -> None:
        kept.append(TlsStream(Strange(), contexts.client, server_hostname="localhost"))

    with warned("unclosed Value"):
        trio.run(main)
    assert log == whole("late")


def test_a4_a_later_run_knows_nothing_of_it() -> None:
    log: list[str] = []

    async def main() -> None:
        async with Value("value", log):
            assert list(TrioDriver.current()._endings) != []
        assert list(TrioDriver.current()._endings) == []

    open_before = leaks.still_open.copy()
    for _ in range(2):
        trio.run(main)
    assert log == whole("value", "value")
    assert leaks.still_open == open_before


async def test_a4_it_is_no_connection() -> None:
    async with Value("value", []):
        assert statistics().connections_open == 0


# Another process


async def test_c14_a_forked_child_does_not_destroy() -> None:
    log: list[str] = []
    value = Value("value", log)
    child = fork()
    if child == 0:
        refused = 0
        for use in (value.check_open, lambda: value.aclose().send(None)):
            try:
                use()
            except RuntimeError as error:
                refused += "belongs to the parent process" in str(error)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del value, use
            gc.collect()
        os._exit(0 if refused == 2 and not caught else 1)
    assert await in_thread(exit_status, child) == 0
    async with value:
        pass
    assert log == whole("value")


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_c14_a_forked_child_that_goes_on_to_the_end_of_the_run() -> None:
    """The parent of the test is a child, too: forks share trio's epoll, and one has to go."""
    log: list[str] = []
    kept: list[object] = []

    async def main() -> None:
        left, right = await socket_streams()
        kept.extend([Value("value", log), right])
        await left.aclose()  # goes on until the peer's FIN
        Value("dropped", log)
        if child := fork():
            os._exit(exit_status(child))

    parent = fork()
    if not parent:
        status = 1
        try:
            trio.run(main)
            status = len(log)
        finally:
            os._exit(status)
    assert exit_status(parent) == 0


async def test_c14_a_run_of_its_own_in_a_child() -> None:
    async def main() -> None:
        log: list[str] = []
        async with Value("value", log):
            pass
        assert log == whole("value")

    child = fork()
    if child == 0:
        status = 1
        try:
            thread = threading.Thread(target=trio.run, args=(main,))
            thread.start()
            thread.join()
            status = 0
        finally:
            os._exit(status)
    assert await in_thread(exit_status, child) == 0


@pytest.mark.parametrize("how", ["assigned", "passed"])
def test_a3_a4_borrowed_in_a_reference_cycle(how: str) -> None:
    """Weak references to all of it are cleared before the first finalizer runs."""
    log: list[str] = []

    class Lent:
        borrower: Value

        async def aclose(self) -> None:
            log.append("closed what is not its own")

    async def main() -> None:
        lent = Lent()
        if how == "passed":
            lent.borrower = Value("value", log, borrowed(lent))
        else:
            lent.borrower = Value("value", log)
            lent.borrower.lent = borrowed(lent)  # type: ignore[attr-defined]
        del lent
        gc.collect()

    with warned("unclosed Value"):
        trio.run(main)
    assert log == whole("value")
