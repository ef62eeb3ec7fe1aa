"""D1 to D3: aclose_all, replace and must_complete, on our streams, trio's, and any resource."""

from __future__ import annotations

import contextvars
import dataclasses
import itertools
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.lowlevel import enable_ki_protection
from trio.to_thread import run_sync as in_thread

from ringtls import CloseOutcome, TlsStream, aclose_all, must_complete, replace

from ..conftest import Contexts
from ..support.clogging import SMALL, clog
from ..support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from ..support.peer import End, Meet, Peer
from ..support.signals import PACKAGE, SignalAtBytecode
from ..support.tracing import traced_by
from ..support.waiting import LIMIT, until

COMBINATORS = f"{PACKAGE}/_combinators.py"


class Resource(trio.abc.AsyncResource):
    """Closes in a few steps, and notes each."""

    def __init__(self, name: str, log: list[str], error: BaseException | None = None) -> None:
        self.name = name
        self.log = log
        self.error = error

    def __repr__(self) -> str:
        return f"<{self.name}>"

    async def aclose(self) -> None:
        self.log.append(f"begin {self.name}")
        if self.error is not None:
            raise self.error
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        self.log.append(f"end {self.name}")


class Stuck(Resource):
    """Takes a long time to close, unless it is cancelled."""

    async def aclose(self) -> None:
        try:
            await trio.sleep(1000)
        finally:
            self.log.append(f"{self.name} closed at {trio.current_time():g}")


Story = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]


async def after_a_cancellation(act: Callable[[], Awaitable[object]]) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await act()
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def to_the_cancellation(act: Callable[[], Awaitable[object]]) -> None:
    await act()
    await trio.lowlevel.checkpoint()
    raise AssertionError("the cancellation did not come out")


async def during_a_cancellation(act: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(to_the_cancellation, act)
        await trio.lowlevel.cancel_shielded_checkpoint()
        nursery.cancel_scope.cancel()


async def during_a_second_cancellation(act: Callable[[], Awaitable[object]]) -> None:
    with trio.CancelScope() as outer, trio.CancelScope() as inner:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(to_the_cancellation, act)
            inner.cancel()
            await trio.lowlevel.cancel_shielded_checkpoint()
            await trio.lowlevel.cancel_shielded_checkpoint()
            outer.cancel()
    assert outer.cancelled_caught


async def past_a_deadline(act: Callable[[], Awaitable[object]]) -> None:
    with trio.move_on_after(0) as scope:
        await act()
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


STORIES = pytest.mark.parametrize(
    "story",
    [
        after_a_cancellation,
        during_a_cancellation,
        during_a_second_cancellation,
        past_a_deadline,
    ],
)


# must_complete


async def steps(log: list[str], result: str) -> str:
    for number in range(5):
        await trio.lowlevel.checkpoint()
        log.append(f"step {number}")
    return result


async def test_d3_hands_back_the_result() -> None:
    assert await must_complete(steps, [], "result") == "result"


async def test_d3_raises_what_was_raised() -> None:
    async def fail(error: BaseException) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    for error in (KeyError("key"), SystemExit(3), ExceptionGroup("group", [ValueError()])):
        with pytest.raises(type(error)) as caught:
            await must_complete(fail, error)
        assert caught.value is error


@STORIES
async def test_d3_runs_to_its_end(story: Story) -> None:
    log: list[str] = []

    async def act() -> None:
        log.append(await must_complete(steps, log, "result"))
        log.append("still running")

    await story(act)
    assert log == [*(f"step {number}" for number in range(5)), "result", "still running"]


async def test_d3_its_own_deadline_counts(autojump_clock: trio.abc.Clock) -> None:
    async def bounded() -> bool:
        with trio.move_on_after(3) as scope:
            await trio.sleep_forever()
        return scope.cancelled_caught

    with trio.CancelScope() as outer:
        outer.cancel()
        assert await must_complete(bounded)
        assert trio.current_time() == 3


async def untold() -> None:
    await must_complete(trio.lowlevel.checkpoint)


async def told_of_a_cancellation() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await must_complete(trio.lowlevel.checkpoint)


@enable_ki_protection
async def told_of_an_interrupt() -> None:
    signal.raise_signal(signal.SIGINT)
    await must_complete(trio.lowlevel.checkpoint)
    await trio.lowlevel.checkpoint()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("main", [untold, told_of_a_cancellation, told_of_an_interrupt])
@pytest.mark.parametrize(
    "function",
    [
        "Task.run",
        "Task.fail",
        "TrioWaitQueue.wake",
        "run_apart.<locals>.hand_back",
        "run_apart.<locals>.work",
    ],
)
def test_c16_d3_an_exception_at_each_bytecode_of_its_task(
    function: str, main: Callable[[], Awaitable[None]]
) -> None:
    """Who waits is woken, also where it was told of a cancellation or an interrupt before."""

    def play(injection: RaiseAt) -> None:
        with injection.tracing(), suppress(InjectedError, KeyboardInterrupt, RuntimeError):
            trio.run(main)

    raise_at_each_bytecode(function, play, in_awaits=False)


@pytest.mark.long
def test_c16_d1_an_exception_at_each_bytecode_of_what_a_cancellation_does() -> None:
    """trio would crash if it were raised in there. It is done all the same."""

    async def main() -> None:
        log: list[str] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await aclose_all(Stuck("stuck", log))
        assert log == ["stuck closed at 5"]

    def play(injection: RaiseAt) -> None:
        with injection.tracing():
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    raise_at_each_bytecode("Grace.limit", play)


async def test_d3_sees_the_context_of_its_caller() -> None:
    variable = contextvars.ContextVar[str]("variable")
    variable.set("the caller's")

    async def look() -> str:
        return variable.get()

    assert await must_complete(look) == "the caller's"


async def test_d3_is_told_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"must_complete\(f, x\)"):
        await must_complete(steps([], ""))  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["in a wait", "in its code", "in another task"])
def test_d3_sigint(where: str) -> None:
    log: list[str] = []

    async def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    async def interrupted() -> str:
        if where == "in its code":
            signal.raise_signal(signal.SIGINT)
        return await steps(log, "result")

    @enable_ki_protection  # so that it reaches the main task
    async def interrupt_later() -> None:
        await trio.lowlevel.checkpoint()
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if where == "in a wait":
                nursery.start_soon(interrupt_later)
            elif where == "in another task":
                nursery.start_soon(interrupt)
            log.append(await must_complete(interrupted))
            log.append("still running")
            await trio.lowlevel.checkpoint()
            log.append("too far")

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert log == [*(f"step {number}" for number in range(5)), "result", "still running"]


# aclose_all


@pytest.mark.parametrize("attempt", range(10))  # trio tosses a coin for the order of tasks
async def test_d1_siblings_close_together_and_begin_in_order(attempt: int) -> None:
    log: list[str] = []
    last_one_begins = trio.Event()

    class Waiting(Resource):
        async def aclose(self) -> None:
            log.append(f"begin {self.name}")
            if self.name == "11":
                last_one_begins.set()
            await last_one_begins.wait()
            log.append(f"end {self.name}")

    names = [str(number) for number in range(12)]
    with trio.fail_after(LIMIT):
        await aclose_all(*(Waiting(name, log) for name in names))
    assert log[:12] == [f"begin {name}" for name in names]
    assert sorted(log[12:]) == sorted(f"end {name}" for name in names)


async def test_d1_nothing_to_close() -> None:
    await aclose_all()


async def test_d1_each_whatever_the_others_do() -> None:
    log: list[str] = []
    first, second = OSError("first"), ValueError("second")
    with pytest.raises(ExceptionGroup) as caught:
        await aclose_all(
            Resource("slow", log),
            Resource("bad", log, first),
            Resource("also slow", log),
            Resource("also bad", log, second),
        )
    assert caught.value.exceptions == (first, second)
    assert first.__notes__ == ["raised by closing <bad>"]
    assert second.__notes__ == ["raised by closing <also bad>"]
    assert "end slow" in log
    assert "end also slow" in log


@dataclasses.dataclass(frozen=True)
class TakesNoNoteError(Exception):
    number: int


async def test_d1_d2_an_exception_that_takes_no_note() -> None:
    log: list[str] = []
    first, second = TakesNoNoteError(1), TakesNoNoteError(2)
    with pytest.raises(ExceptionGroup) as caught:
        await aclose_all(Resource("bad", log, first), Resource("slow", log))
    assert caught.value.exceptions == (first,)
    assert "end slow" in log
    with pytest.raises(ExceptionGroup) as caught:
        await replace(Resource("old", log, second), Resource("new", log))
    assert caught.value.exceptions == (second,)
    assert "end new" in log


async def test_d1_what_is_no_exception() -> None:
    log: list[str] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        await aclose_all(Resource("exits", log, SystemExit()), Resource("slow", log))
    assert caught.group_contains(SystemExit)
    assert "end slow" in log


async def test_d1_what_is_no_resource() -> None:
    log: list[str] = []
    with pytest.raises(ExceptionGroup) as caught:
        await aclose_all(3, Resource("slow", log))  # type: ignore[arg-type]
    assert caught.group_contains(AttributeError, match="aclose")
    assert "end slow" in log


@STORIES
async def test_d1_under_cancellation(story: Story) -> None:
    log: list[str] = []
    error = OSError()

    async def act() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await aclose_all(Resource("a", log), Resource("bad", log, error), Resource("b", log))
        assert caught.value.exceptions == (error,)
        log.append("still running")

    await story(act)
    assert sorted(log[:-1]) == ["begin a", "begin b", "begin bad", "end a", "end b"]
    assert log[-1] == "still running"


async def test_d1_without_a_cancellation_there_is_time(autojump_clock: trio.abc.Clock) -> None:
    log: list[str] = []
    await aclose_all(Stuck("stuck", log))
    assert log == ["stuck closed at 1000"]


@pytest.mark.parametrize("cancelled_at", [0, 60])
async def test_d1_a_cancellation_bounds_what_is_not_ours(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture, cancelled_at: int
) -> None:
    log: list[str] = []
    with trio.move_on_after(cancelled_at) as scope:
        await aclose_all(Stuck("stuck", log), Resource("good", log))
        log.append("still running")
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert log == [
        "begin good",
        "end good",
        f"stuck closed at {cancelled_at + 5}",
        "still running",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "<stuck> did not close within 5 s, it was cancelled"
    ]


async def test_d1_nested_scopes_close_inside_out() -> None:
    log: list[str] = []
    with trio.CancelScope() as scope:
        async with Resource("outer", log):
            try:
                async with Resource("inner", log):
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            finally:
                await aclose_all(Resource("sibling", log), Resource("sibling", log))
    # trio's own __aexit__ is a cancellation point, so "outer" and "inner" only begin.
    assert log == [
        "begin inner",
        *["begin sibling"] * 2,
        *["end sibling"] * 2,
        "begin outer",
    ]


async def test_d1_streams_of_trio() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(b"last words")
    with trio.CancelScope() as scope:
        scope.cancel()
        await aclose_all(ours)
        scope.shield = True
    assert await theirs.receive_some() == b"last words"
    assert await theirs.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"more")


@STORIES
async def test_d1_tls_streams(contexts: Contexts, meet: Meet, story: Story) -> None:
    """Each peer sees all that it was sent and a clean end; the outer one's comes last."""
    outer, outer_peer = await meet(contexts)
    siblings = [await meet(contexts) for _ in range(3)]
    broken, broken_peer = await meet(contexts)
    broken_peer.vanish()
    outcomes: list[CloseOutcome | None] = []

    async def act() -> None:
        async with outer:
            for stream, _ in siblings:
                await must_complete(stream.send_all, b"last words")
            await aclose_all(broken, *(stream for stream, _ in siblings))
            outcomes.extend(stream.close_outcome for stream in (*streams, outer))

    streams = [stream for stream, _ in siblings]
    await story(act)
    assert outcomes == [*[CloseOutcome.CLEAN] * 3, None]
    assert broken.close_outcome is CloseOutcome.PEER_RESET
    for _, peer in siblings:
        end = await in_thread(peer.end)
        assert end.is_clean
        assert end.data == b"last words"
    assert (await in_thread(outer_peer.end)).is_clean


async def test_d1_a_stream_keeps_to_its_own_timeout(
    contexts: Contexts, meet: Meet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringtls._combinators.GRACE", 0.01)
    stream, peer = await meet(contexts, buffer_size=SMALL)
    await clog(stream)
    ends: list[End] = []
    grace_is_over: list[str] = []

    async def read_late() -> None:
        with trio.CancelScope(shield=True):
            await until(lambda: grace_is_over)
            ends.append(await in_thread(peer.end))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_late)
        nursery.cancel_scope.cancel()
        await aclose_all(stream, Stuck("stuck", grace_is_over))
    assert stream.close_outcome is CloseOutcome.CLEAN
    assert ends[0].is_clean


# replace


@STORIES
async def test_d2_the_old_one_ends_and_the_new_one_lives(
    contexts: Contexts, meet: Meet, story: Story
) -> None:
    old, old_peer = await meet(contexts)
    new, new_peer = await meet(contexts)
    await old.send_all(b"last words")
    handed: list[TlsStream[Any]] = []

    async def act() -> None:
        handed.append(await replace(old, new))
        assert old.close_outcome is CloseOutcome.CLEAN

    await story(act)
    assert handed == [new]
    end = await in_thread(old_peer.end)
    assert end.is_clean
    assert end.data == b"last words"
    async with new:
        await new.send_all(b"on the new one")
    end = await in_thread(new_peer.end)
    assert end.is_clean
    assert end.data == b"on the new one"


async def test_d2_an_error_closes_both() -> None:
    log: list[str] = []
    error = OSError()
    with pytest.raises(ExceptionGroup) as caught:
        await replace(Resource("old", log, error), Resource("new", log))
    assert caught.value.exceptions == (error,)
    assert log == ["begin old", "begin new", "end new"]


async def test_d2_two_errors() -> None:
    log: list[str] = []
    errors = OSError("old"), OSError("new")
    with pytest.raises(ExceptionGroup) as caught:
        await replace(Resource("old", log, errors[0]), Resource("new", log, errors[1]))
    assert caught.value.exceptions == errors


async def test_d2_with_itself() -> None:
    log: list[str] = []
    resource = Resource("one", log)
    with pytest.raises(ValueError, match="with itself"):
        await replace(resource, resource)
    assert not log


# A KeyboardInterrupt

#: Every tenth bytecode by default; with RINGTLS_INJECTIONS every one.
BYTECODES = 1 if "RINGTLS_INJECTIONS" in os.environ else 10


def play(number: int) -> tuple[bool, list[str]]:
    """All three, with SIGINT at a bytecode of theirs; was it given, and what came of it?"""
    log: list[str] = []
    signaller = SignalAtBytecode(number, COMBINATORS)

    @enable_ki_protection
    async def main() -> None:
        with traced_by(signaller):
            log.append(await must_complete(steps, log, "result"))
            kept = await replace(Resource("old", log), Resource("new", log))
            await aclose_all(kept, Resource("other", log))

    with suppress(KeyboardInterrupt):
        trio.run(main)
    return signaller.left <= 0, log


def test_d1_d2_d3_keyboard_interrupt_at_any_bytecode() -> None:
    """It comes out behind them all: none of them is a cancellation point."""
    for number in itertools.count(1, BYTECODES):
        was_given, log = play(number)
        assert log[:6] == [*(f"step {step}" for step in range(5)), "result"], number
        assert log[6:8] == ["begin old", "end old"], number
        assert sorted(log[8:]) == ["begin new", "begin other", "end new", "end other"], number
        if not was_given:
            break
    assert number > 100


def test_d1_sigint_while_tls_streams_close(contexts: Contexts, meet: Meet) -> None:
    """The main task is in aclose_all when the signal comes; the peers read only after it."""
    ends: list[End] = []
    log: list[str] = []

    @enable_ki_protection  # so that it reaches the main task
    async def interrupt(peers: list[Peer]) -> None:
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)
        with trio.CancelScope(shield=True):
            ends.extend([await in_thread(peer.end) for peer in peers])

    async def main() -> None:
        pairs = [await meet(contexts, buffer_size=SMALL) for _ in range(2)]
        for stream, _ in pairs:
            await clog(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt, [peer for _, peer in pairs])
            await aclose_all(*(stream for stream, _ in pairs))
            log.append("still running")
            await trio.lowlevel.checkpoint()
            log.append("too far")

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    assert caught.group_contains(KeyboardInterrupt)
    assert [end.is_clean for end in ends] == [True, True]
    assert log == ["still running"]
