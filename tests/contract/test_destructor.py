"""A1 to A3, A5: the end of any value, once and to its end, and then that of what it owns."""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import os
import pickle
import random
import signal
import sys
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import attrs
import pytest
import trio
import trio.testing

from ringtls import AsyncDestructor, _destruction, _destructor, _ownership, aclose_all, borrowed
from ringtls._destruction import TRANSITIONS, Event, Phase

from ..support.injection import InjectedError, RaiseAt, raise_at_each_bytecode
from ..support.signals import SignalAtBytecode
from ..support.tracing import traced_by
from ..support.values import Value, whole
from ..support.waiting import LIMIT
from .test_combinators import STORIES, Resource, Story, Stuck

T = TypeVar("T")

INJECTIONS = int(os.environ.get("RINGTLS_INJECTIONS", "12"))


def test_a1_the_table_is_that_of_the_documentation() -> None:
    rows = [line.split() for line in (_destruction.__doc__ or "").splitlines()]
    documented = {
        (Phase[row[0]], Event[row[1]]): Phase[row[2]]
        for row in rows
        if row and row[0] in Phase.__members__
    }
    assert documented == TRANSITIONS


# A1: once


@pytest.mark.parametrize("how", ["return", "raise", "aclose", "twice"])
async def test_a1_closed(how: str) -> None:
    log: list[str] = []
    value = Value("value", log)
    with suppress(KeyError):
        async with value as entered:
            assert entered is value
            if how == "raise":
                raise KeyError
            if how in ("aclose", "twice"):
                await value.aclose()
                assert log == whole("value")
    if how == "twice":
        await value.aclose()
    assert log == whole("value")


async def test_a1_closed_by_two_tasks() -> None:
    """Both wait; the one that came first is told of errors."""
    told: list[str] = []
    ended: list[str] = []
    begun = trio.Event()

    class Failing(Value):
        async def adestroy(self) -> None:
            begun.set()
            await super().adestroy()
            ended.append(self.name)
            raise KeyError

    value = Failing("value", [])

    async def close(who: str) -> None:
        try:
            await value.aclose()
        except ExceptionGroup:
            told.append(who)
        assert ended == ["value"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close, "first")
        await begun.wait()
        await close("second")
    assert told == ["first"]


async def test_a1_inheritance() -> None:
    log: list[str] = []

    class Mixin:
        async def adestroy(self) -> None:
            log.append("mixin")
            await super().adestroy()  # type: ignore[misc]

    class Derived(Mixin, Value):
        def __init__(self) -> None:
            super().__init__("derived", log)
            self.more = 1

        async def adestroy(self) -> None:
            log.append(f"more: {self.more}")
            await super().adestroy()

    class Further(Derived):
        pass

    async with Further():
        pass
    assert log == ["more: 1", "mixin", *whole("derived")]
    async with Value("base", log):  # though a subclass was made first
        pass
    assert log[4:] == whole("base")


async def test_a1_without_adestroy() -> None:
    log: list[str] = []

    class Holder(AsyncDestructor):
        pass

    async with Holder() as holder:
        holder.resource = Resource("held", log)  # type: ignore[attr-defined]
    assert log == ["begin held", "end held"]
    with pytest.raises(TypeError, match=r"Holder\(\) takes no arguments"):
        Holder(3)  # type: ignore[call-arg]


class Slotted(AsyncDestructor):
    __slots__ = ("__first", "log", "second")

    def __init__(self, log: list[str], *, swapped: bool = False) -> None:
        self.log = log
        if swapped:
            self.second = Resource("second", log)
        self.__first = Resource("first", log)
        self.second = Resource("second", log)

    async def adestroy(self) -> None:
        self.log.append("destroyed")


@pytest.mark.parametrize("swapped", [False, True])
async def test_a1_a3_slots(swapped: bool) -> None:
    log: list[str] = []
    async with Slotted(log, swapped=swapped) as value:
        assert not hasattr(value, "__dict__")
        value.destroy_timeout = 3
        with pytest.raises(AttributeError):
            value.other = 3  # type: ignore[attr-defined]
    order = ["second", "first"] if swapped else ["first", "second"]
    assert log == ["destroyed", *whole(*order)]


async def test_a1_a3_slots_and_attributes() -> None:
    log: list[str] = []

    class Both(Slotted):
        def __init__(self) -> None:
            self.before = Resource("before", log)
            super().__init__(log)
            self.after = Resource("after", log)
            self.before = Resource("before", log)  # first assigned before

    async with Both():
        pass
    assert log == ["destroyed", *whole("before", "first", "second", "after")]


@dataclasses.dataclass
class Plain(AsyncDestructor):
    log: list[str]
    first: Resource
    second: Any = None
    made: list[str] = dataclasses.field(default_factory=list)
    destroy_timeout: float = 20

    def __post_init__(self) -> None:
        self.made.append("made")

    async def adestroy(self) -> None:
        self.log.append(f"destroyed within {self.destroy_timeout:g}")


@dataclasses.dataclass(frozen=True)
class Frozen(AsyncDestructor):
    log: list[str]
    first: Resource
    second: Any = None

    async def adestroy(self) -> None:
        self.log.append("destroyed within 20")


@dataclasses.dataclass(slots=True)
class WithSlots(AsyncDestructor):
    log: list[str]
    first: Resource
    second: Any = None

    async def adestroy(self) -> None:
        self.log.append("destroyed within 20")


@dataclasses.dataclass(slots=True, frozen=True, eq=True, kw_only=True, weakref_slot=True)
class FrozenWithSlots(AsyncDestructor):
    log: list[str]
    first: Resource
    second: Any = None

    async def adestroy(self) -> None:
        self.log.append("destroyed within 20")


@attrs.define
class Attrs(AsyncDestructor):
    log: list[str]
    first: Resource
    second: Any = attrs.field(default=None, validator=attrs.validators.instance_of(Resource))

    async def adestroy(self) -> None:
        self.log.append("destroyed within 20")


@attrs.frozen(slots=False)
class FrozenAttrs(AsyncDestructor):
    log: list[str]
    first: Resource
    second: Any = None

    async def adestroy(self) -> None:
        self.log.append("destroyed within 20")


@pytest.mark.parametrize(
    "cls", [Plain, Frozen, WithSlots, FrozenWithSlots, Attrs, attrs.define(Attrs), FrozenAttrs]
)
async def test_a1_a3_dataclasses(cls: Any) -> None:
    log: list[str] = []
    lent = Resource("lent", log)
    async with cls(log=log, first=Resource("first", log), second=borrowed(lent)) as value:
        assert value.second is lent
        assert value == value
    assert log == ["destroyed within 20", *whole("first")]


async def test_a1_init_is_that_of_the_next_class() -> None:
    """Whichever of them had a value first."""

    class Base(AsyncDestructor):
        def __init__(self) -> None:
            self.initialized = ["base"]

    class Left(Base):
        pass

    class Right(Base):
        def __init__(self) -> None:
            super().__init__()
            self.initialized.append("right")

    class Other:
        def __init__(self) -> None:
            self.initialized = ["other"]

    class Foreign(AsyncDestructor, Other):
        pass

    class Both(Left, Right, Foreign):
        pass

    class Twin(Left, Right):
        pass

    made: list[Any] = [Twin(), Left(), Right(), Foreign(), Both()]
    order = [each.initialized for each in made]
    assert order == [["base", "right"], ["base"], ["base", "right"], ["other"], ["base", "right"]]
    await aclose_all(*made)


async def test_a1_generic() -> None:
    class Box(AsyncDestructor, Generic[T]):
        def __init__(self, content: T) -> None:
            self.content = content

    log: list[str] = []
    async with Box[Resource](Resource("content", log)):
        pass
    assert log == whole("content")


async def test_a1_a_class_that_is_hard_to_handle() -> None:
    """Its operators are not for us to call."""
    log: list[str] = []

    class Hostile(Value):
        def __eq__(self, other: object) -> bool:
            raise AssertionError

        def __bool__(self) -> bool:
            raise AssertionError

        def __getattr__(self, name: str) -> object:
            raise AssertionError

        def __repr__(self) -> str:
            raise AssertionError

        @property
        def trap(self) -> object:
            raise AssertionError

    class Failing(Hostile):
        async def adestroy(self) -> None:
            raise KeyError

    hostile = Hostile("hostile", log, Hostile("part", log), failing := Failing("bad", log))
    with pytest.raises(ExceptionGroup) as caught:
        await hostile.aclose()
    assert log == whole("hostile", "part")
    [error] = caught.value.exceptions
    assert error.__notes__ == [f"raised by closing {object.__repr__(failing)}"]


class HostileType(type):
    def __getattr__(cls, name: str) -> object:
        raise AssertionError


class OfHostileType(metaclass=HostileType):
    """Its attributes are not for us to ask for."""


async def test_a3_an_attribute_that_is_hard_to_handle() -> None:
    log: list[str] = []
    async with Value("value", log, Resource("part", log)) as value:
        value.hostile = OfHostileType()  # type: ignore[attr-defined]
        value.more = Resource("more", log)  # type: ignore[attr-defined]
    assert log == whole("value", "part", "more")


@pytest.mark.ringtls_allow_unclosed
async def test_a1_made_without_init() -> None:
    """As factories do that await something first."""
    log: list[str] = []

    async def make() -> Value:
        value = Value.__new__(Value)
        value.name, value.log = "value", log
        return value

    async with await make():
        pass
    assert log == whole("value")
    value = await make()
    with pytest.warns(ResourceWarning, match="unclosed Value"):
        del value
    await trio.testing.wait_all_tasks_blocked()
    assert log == whole("value", "value")


async def test_a1_made_without_init_and_without_attributes() -> None:
    """Somebody closes it, so it is one."""
    log: list[str] = []

    class Bare(AsyncDestructor):
        def __init__(self) -> None:
            raise AssertionError

        async def adestroy(self) -> None:
            log.append("destroyed")

    await Bare.__new__(Bare).aclose()
    assert log == ["destroyed"]


async def test_a1_resurrected() -> None:
    """It is destroyed, and stays so."""
    log: list[str] = []
    kept: list[Value] = []

    class Lazarus(Value):
        async def adestroy(self) -> None:
            kept.append(self)
            await super().adestroy()

    async with Lazarus("value", log):
        pass
    with pytest.raises(trio.ClosedResourceError):
        kept[0].check_open()
    await kept.pop().aclose()
    assert log == whole("value")


async def test_a1_no_copies() -> None:
    async with Value("value", []) as value:
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a Value can't be copied or pickled"):
                duplicate(value)


def test_a1_what_is_wrong_with_a_class() -> None:
    with pytest.raises(TypeError, match="Sync has a __del__: write 'async def adestroy'"):

        class Sync(AsyncDestructor):
            def __del__(self) -> None:
                pass

    class Finalized:
        def __del__(self) -> None:
            pass

    with pytest.raises(TypeError, match="Mixed has a __del__"):

        class Mixed(Finalized, AsyncDestructor):
            pass

    with pytest.raises(TypeError, match=r"Plain\.adestroy must be 'async def'"):

        class Plain(AsyncDestructor):
            def adestroy(self) -> None:  # type: ignore[override]
                pass

    with pytest.raises(
        TypeError, match=r"Generator\.adestroy must be 'async def', without 'yield'"
    ):

        class Generator(AsyncDestructor):
            async def adestroy(self) -> AsyncIterator[None]:  # type: ignore[override]
                yield

    with pytest.raises(ValueError, match="timeout must be >= 0, not -1"):

        class Impatient(AsyncDestructor):
            destroy_timeout = -1


async def test_c15_entered_with_with() -> None:
    async with Value("value", []) as value:
        with pytest.raises(TypeError, match="use 'async with' with a Value"), value:
            pass


# An __init__ that raises


class Unmade(Value):
    def __init__(self, log: list[str], error: BaseException) -> None:
        super().__init__("unmade", log, Resource("part", log))
        raise error


class UnmadeToo(Unmade):
    def __init__(self, log: list[str], error: BaseException) -> None:
        self.more = Value("more", log)
        super().__init__(log, error)
        raise AssertionError


async def test_a1_init_goes_on_where_that_of_its_base_raises() -> None:
    log: list[str] = []

    class Saved(Unmade):
        def __init__(self) -> None:
            with suppress(KeyError):
                super().__init__(log, KeyError())

    value = Saved()
    await trio.testing.wait_all_tasks_blocked()
    assert log == []
    await value.aclose()
    assert log == whole("unmade", "part")


@pytest.mark.parametrize("error", [KeyError(), KeyboardInterrupt(), trio.Cancelled])
@pytest.mark.filterwarnings("error")
async def test_a1_init_raises(error: BaseException | type) -> None:
    """There never was a value: what it had is closed, and nobody is warned."""
    log: list[str] = []
    raised = error._create(source="unknown") if isinstance(error, type) else error  # type: ignore[attr-defined]
    for cls in (Unmade, UnmadeToo):
        with pytest.raises(type(raised)):
            cls(log, raised)
        await trio.testing.wait_all_tasks_blocked()
    assert log == [*whole("part"), *whole("more", "part")]


class Endlessly(Value):
    def __init__(self, log: list[str]) -> None:
        super().__init__("unmade", log, Resource("part", log))
        self.inner = Endlessly(log)


def test_a1_init_raises_where_nothing_more_can_be_called() -> None:
    """At the limit of recursion. The run ends, and all that was taken is closed."""
    log: list[str] = []

    async def main() -> None:
        with pytest.raises(RecursionError):
            Endlessly(log)

    trio.run(main)
    assert len(log) > 2
    assert log.count("begin part") == log.count("end part") == len(log) / 2


# A2


@STORIES
async def test_a2_runs_to_its_end(story: Story) -> None:
    log: list[str] = []

    async def act() -> None:
        async with Value("outer", log, Value("part", log)):
            async with Value("inner", log):
                pass
            log.append("between")
        log.append("still running")

    await story(act)
    assert log == [*whole("inner"), "between", *whole("outer", "part"), "still running"]


@STORIES
async def test_a2_siblings(story: Story) -> None:
    log: list[str] = []

    async def act() -> None:
        await aclose_all(*(Value(name, log) for name in "abc"))
        log.append("still running")

    await story(act)
    assert sorted(log[:3]) == ["begin a", "begin b", "begin c"]
    assert sorted(log[3:6]) == ["end a", "end b", "end c"]
    assert log[6:] == ["still running"]


class Endless(Value):
    async def adestroy(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.log.append(f"{self.name} stopped at {trio.current_time():g}")


class Patient(Endless):
    destroy_timeout = 30


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a2_a_timeout_cancels_it(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture, cancelled: bool
) -> None:
    """And its attributes are closed all the same. No error is raised for it."""
    log: list[str] = []
    value, patient, set_late = Endless("a", log), Patient("b", log), Patient("c", log)
    value.part = Resource("part", log)  # type: ignore[attr-defined]
    set_late.destroy_timeout = 60
    with trio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        for each in (value, patient, set_late):
            await each.aclose()
    assert log == ["a stopped at 5", *whole("part"), "b stopped at 35", "c stopped at 95"]
    assert len(caplog.records) == 3
    assert "Endless, made at " in caplog.messages[0]
    assert "was not destroyed within 5 s: its adestroy() was cancelled" in caplog.messages[0]


async def test_a2_wrong_timeouts(autojump_clock: trio.abc.Clock) -> None:
    log: list[str] = []
    value = Value("value", log, Resource("part", log))
    with pytest.raises(ValueError, match="timeout must be >= 0, not -1"):
        value.destroy_timeout = -1
    with pytest.raises(ValueError, match="timeout is too large"):
        value.destroy_timeout = 10**400
    assert value.destroy_timeout == 5
    await value.aclose()

    class Wrong(Patient):
        pass

    wrong = Wrong("wrong", log)
    wrong.destroy_timeout = "soon"  # type: ignore[assignment]
    with pytest.raises(ExceptionGroup) as caught:
        await wrong.aclose()
    assert caught.group_contains(TypeError)
    assert log == [*whole("value", "part"), "wrong stopped at 5"]


def test_a2_sigint() -> None:
    log: list[str] = []

    class Interrupting(Value):
        async def adestroy(self) -> None:
            signal.raise_signal(signal.SIGINT)
            await super().adestroy()

    async def main() -> None:
        async with Interrupting("value", log, Value("part", log)):
            pass
        log.append("still running")
        await trio.lowlevel.checkpoint()
        log.append("too far")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert log == [*whole("value", "part"), "still running"]


#: Where a destructor's end is run.
MODULES = (
    _destruction.__file__,
    _destructor.__file__,
    _ownership.__file__,
    str(sys.modules["ringtls._combinators"].__file__),
)


def play(number: int) -> tuple[bool, list[str]]:
    """Values of two classes, with SIGINT at a bytecode; was it given, and what ended?"""
    log: list[str] = []
    signaller = SignalAtBytecode(number, MODULES)

    class Fresh(Value):  # whose __init__ is not wrapped yet
        pass

    async def main() -> None:
        with traced_by(signaller):
            async with Fresh("outer", log, Resource("outer part", log)) as outer:
                log.append("made")
                outer.lent = borrowed(Resource("lent", log))  # type: ignore[attr-defined]
                await Fresh("inner", log).aclose()
            log.append("left")

    with suppress(KeyboardInterrupt):
        trio.run(main)
    return signaller.left <= 0, log


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore:unclosed Fresh")  # it may come before the async with
def test_a1_a2_keyboard_interrupt_at_any_bytecode() -> None:
    """Whatever has been made ends once, in full."""
    last = 1
    while play(last)[0]:
        last *= 2
    rng = random.Random(3)
    for number in rng.sample(range(1, last), 60):
        given, log = play(number)
        ended = [line for line in log if line not in ("made", "left")]
        for name in ("outer", "outer part", "inner"):
            assert ended.count(f"begin {name}") == ended.count(f"end {name}") <= 1, (number, log)
        assert "begin lent" not in log
        if "made" in log:
            outer = [line for line in ended if "outer" in line]
            assert outer == whole("outer", "outer part"), (number, log)
        if not given:
            assert log == ["made", *whole("inner", "outer", "outer part"), "left"]


def play_with_an_exception(injection: RaiseAt) -> bool:
    """Values that end in all ways, with an exception at a bytecode of ours; was it raised?"""
    log: list[str] = []
    kept: list[Value] = []

    async def task(story: Callable[[], Awaitable[None]]) -> None:
        with suppress(InjectedError, RuntimeError, ExceptionGroup, trio.ClosedResourceError):
            await story()
        gc.collect(0)

    async def close() -> None:
        async with Value("closed", log, Value("part", log), Resource("resource", log)):
            pass

    async def drop() -> None:
        value = Value("dropped", log, Value("part of what was dropped", log))
        value.itself = value  # type: ignore[attr-defined]

    async def keep() -> None:
        kept.append(Value("kept", log, borrowed(Value("lent", log))))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for story in (close, drop, keep):
                nursery.start_soon(task, story)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never started
        with injection.tracing(), suppress(InjectedError, trio.TrioInternalError):
            trio.run(main)
        kept.clear()
        gc.collect()
    begun = [line for line in log if line.startswith("begin")]
    assert len(set(begun)) == len(begun), injection.place
    if not injection.has_raised:
        assert len(begun) == 7
    return injection.has_raised


@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_c16_a1_an_exception_at_any_bytecode() -> None:
    """Every run ends, and nothing is destroyed twice."""

    def play(number: int) -> bool:
        return play_with_an_exception(RaiseAt(number, "opcode", in_awaits=False))

    last = 1
    while play(last):
        last *= 2
    rng = random.Random(16)
    for number in rng.sample(range(1, last), INJECTIONS):
        play(number)


@pytest.mark.long
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "function",
    [
        "Destruction._destroy_orphan",
        "Task.run",
        "TrioDriver._drain",
        "TrioDriver._end_shield",
        "TrioDriver._is_last_of",
        "TrioDriver._mind_the_end",
        "TrioDriver._pump",
        "TrioDriver._start_late_pump",
    ],
)
def test_c16_a1_an_exception_at_each_bytecode_where_the_run_ends(function: str) -> None:
    raise_at_each_bytecode(function, play_with_an_exception, in_awaits=False)


@pytest.mark.long
@pytest.mark.ringtls_allow_unclosed
@pytest.mark.filterwarnings("ignore:unclosed Value")
@pytest.mark.parametrize("function", ["AsyncDestructor.__new__", "Destruction.__init__"])
def test_c16_a1_a_value_that_was_only_half_made(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its finalizer raises nothing."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    async def main() -> None:
        with suppress(InjectedError):
            Value("value", [])

    def play(injection: RaiseAt) -> None:
        with injection.tracing():
            trio.run(main)
        assert not unraisable, injection.place

    raise_at_each_bytecode(function, play)


# A3


async def test_a3_in_order_each_whatever_the_others_do() -> None:
    log: list[str] = []
    errors = [OSError("first"), KeyError("second"), ValueError("its own")]

    class Failing(Value):
        async def adestroy(self) -> None:
            await super().adestroy()
            raise errors[2]

    parts = [
        Resource("bad", log, errors[0]),
        Resource("good", log),
        Resource("also bad", log, errors[1]),
        Resource("also good", log),
    ]
    with pytest.raises(ExceptionGroup, match="destroying Failing failed") as caught:
        await Failing("value", log, *parts).aclose()
    assert caught.value.exceptions == (errors[2], errors[0], errors[1])
    assert errors[0].__notes__ == ["raised by closing <bad>"]
    assert log == [
        *whole("value"),
        "begin bad",
        *whole("good"),
        "begin also bad",
        *whole("also good"),
    ]


async def test_a3_what_is_no_exception() -> None:
    log: list[str] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        await Value("value", log, Resource("exits", log, SystemExit()), Value("b", log)).aclose()
    assert caught.group_contains(SystemExit)
    assert log[-2:] == whole("b")


async def test_a3_a_generator_exit() -> None:
    """By which Python finalizes coroutines, and which user code may raise, too."""
    log: list[str] = []

    class Failing(Value):
        async def adestroy(self) -> None:
            await super().adestroy()
            raise GeneratorExit

    value = Failing("value", log, Resource("bad", log, GeneratorExit()), Value("b", log))
    for waits in (value.aclose, value.aclose):
        with suppress(ExceptionGroup), trio.fail_after(20):
            await waits()
    assert log == [*whole("value"), "begin bad", *whole("b")]


async def test_a3_an_error_of_the_body_is_not_lost() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with Value("value", [], Resource("bad", [], OSError())):
            raise KeyError
    assert isinstance(caught.value.__context__, KeyError)


async def test_a3_what_is_owned() -> None:
    """Whatever has an aclose(), once. Not its class, no container, and nothing that was let go."""
    log: list[str] = []

    class Other:
        async def aclose(self) -> None:
            log.append("other")

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            log.append("generator")

    other = Other()
    generating = generator()
    await anext(generating)

    class Holder(Value):
        let_go: Other | None

        async def adestroy(self) -> None:
            self.let_go = None
            self.late = Other()

    value = Holder("value", log, other, Other, other, [Other()], generating)
    value.let_go = Other()
    value.itself = value  # type: ignore[attr-defined]
    await value.aclose()
    assert log == ["other", "generator", "other"]


async def test_a3_borrowed() -> None:
    log: list[str] = []
    names = ["assigned", "passed", "named", "alias"]
    assigned, passed, named, alias = lent = [Value(name, log) for name in names]

    class Borrower(Value):
        def __init__(self, name: str, passed: Value, *, named: Value) -> None:
            super().__init__(name, log, passed, borrowed(assigned), Value("own", log))
            self.named = named
            self.alias = passed

    borrower = Borrower("borrower", borrowed(passed), named=borrowed(named))
    assert (borrower.alias, borrower.named) == (passed, named)
    borrower.other = borrowed(alias)  # type: ignore[attr-defined]
    borrower.again = alias  # type: ignore[attr-defined]
    await borrower.aclose()
    assert log == whole("borrower", "own")
    await aclose_all(*lent)
    assert sorted(log[4:]) == sorted(whole(*names))


async def test_a3_borrowed_by_a_base() -> None:
    """Its constructor, too, gets the value itself, whoever calls it."""
    log: list[str] = []
    lent = Value("lent", log)

    class Borrower(Value):
        def __init__(self, name: str, part: Value) -> None:
            super().__init__(name, log, part)
            self.title = part.name

    class Special(Borrower):
        def __init__(self) -> None:
            super().__init__("borrower", borrowed(lent))

    async with Special() as borrower:
        assert borrower.title == "lent"
    assert log == whole("borrower")
    await lent.aclose()


async def test_a3_no_longer_borrowed() -> None:
    log: list[str] = []
    lent = Value("lent", log)
    value = Value("value", log, borrowed(lent))
    value.part0 = Value("own", log)  # type: ignore[attr-defined]
    await value.aclose()
    assert log == whole("value", "own")
    await lent.aclose()


@pytest.mark.parametrize("is_deleted", [True, False])
@pytest.mark.parametrize("how", ["assigned", "passed"])
async def test_a3_what_was_borrowed_is_not_held(how: str, is_deleted: bool) -> None:
    """Once its attribute has something else, or nothing, whoever lent it may drop it."""

    class Lent:
        async def aclose(self) -> None:
            raise AssertionError

    class Borrower(AsyncDestructor):
        def __init__(self, passed: object) -> None:
            self.first = borrowed(Lent()) if how == "assigned" else passed

    borrower = Borrower(borrowed(Lent()) if how == "passed" else None)
    gone = weakref.ref(borrower.first)
    assert isinstance(gone(), Lent)
    if is_deleted:
        del borrower.first
    else:
        borrower.first = None
    assert gone() is None
    await borrower.aclose()


@pytest.mark.parametrize("slots", [(), ("__weakref__",)], ids=["without weak references", "with"])
async def test_a3_borrowed_whatever_becomes_of_the_attribute(slots: tuple[str, ...]) -> None:
    class Lent:
        __slots__ = slots

        async def aclose(self) -> None:
            raise AssertionError

    class Borrower(AsyncDestructor):
        def __init__(self, passed: Lent) -> None:
            self.first: object = passed
            self.second: object = borrowed(Lent())

    borrower = Borrower(borrowed(Lent()))
    first, second = borrower.first, borrower.second
    borrower.first, borrower.second = second, borrowed(Lent())
    for _ in range(3):
        borrower.first = borrowed(first)
    borrower.third = second  # type: ignore[attr-defined]
    borrower.first = first
    await borrower.aclose()


async def test_a3_a_cancellation_bounds_what_is_not_ours(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    await Value("value", log, Stuck("alone", log)).aclose()
    with trio.move_on_after(10):
        await Value("value", log, Stuck("cut", log), Stuck("next", log)).aclose()
        log.append("still running")
    assert [line for line in log if "value" not in line] == [
        "alone closed at 1000",
        "cut closed at 1015",
        "next closed at 1020",
        "still running",
    ]
    assert "<cut> did not close within 5 s, it was cancelled" in caplog.messages


# Ends that meet (rule 4 of _destruction)


@pytest.mark.parametrize("whom", ["itself", "its owner"])
async def test_a2_an_end_in_an_end(whom: str) -> None:
    log: list[str] = []

    class Part(Value):
        async def adestroy(self) -> None:
            await (self if whom == "itself" else owner).aclose()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.aclose)
            await super().adestroy()

    part = Part("part", log)
    owner = Value("owner", log, part)
    with trio.fail_after(LIMIT):
        await owner.aclose()
    assert log == whole("owner", "part")


async def test_a2_ends_that_wait_for_each_other() -> None:
    """Two tasks close two values, of which each owns the other."""
    log: list[str] = []
    left, right = Value("left", log), Value("right", log)
    left.part, right.part = right, left  # type: ignore[attr-defined]
    with trio.fail_after(LIMIT):
        await aclose_all(left, right)
    assert sorted(log) == sorted(whole("left", "right"))


async def test_a2_an_end_waits_for_a_stranger() -> None:
    log: list[str] = []
    stranger = Value("stranger", log)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger.aclose)
        await Value("value", log, stranger).aclose()
        assert "end stranger" in log


# A5


async def test_a5_used_after_the_end() -> None:
    value = Value("value", [])
    value.check_open()
    await value.aclose()
    with pytest.raises(trio.ClosedResourceError, match="this Value was closed"):
        value.check_open()
    with pytest.raises(trio.ClosedResourceError):
        async with value:
            raise AssertionError


async def test_a5_used_during_the_end() -> None:
    """By the end itself and by what it waits for; not by others, nor by the glue after it."""
    seen: list[str] = []

    def look(value: Value, who: str) -> None:
        try:
            value.check_open()
        except trio.ClosedResourceError:
            seen.append(f"{who}: closed")
        else:
            seen.append(f"{who}: open")

    class Part(Value):
        async def adestroy(self) -> None:
            look(value, self.name)

    class Whole(Value):
        async def adestroy(self) -> None:
            look(self, "itself")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, look, self, "its thread")
            await Part("closed by it", []).aclose()
            reached.set()
            await trio.testing.wait_all_tasks_blocked()

    value = Whole("value", [], Part("glue", []))
    reached = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(value.aclose)
        await reached.wait()
        look(value, "another task")
    assert seen == [
        "itself: open",
        "its thread: open",
        "closed by it: open",
        "another task: closed",
        "glue: closed",
    ]


def test_a5_made_outside_of_a_run() -> None:
    log: list[str] = []
    make: Callable[[], object] = lambda: Value("value", log)  # noqa: E731
    with pytest.raises(RuntimeError, match=r"a Value can be made only inside trio.run\(\)"):
        make()

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"a Value can be made only inside trio.run\(\)"):
            await trio.to_thread.run_sync(make)

    trio.run(main)


async def test_a5_closed_in_another_run() -> None:
    log: list[str] = []
    async with Value("value", log) as value:

        async def close() -> None:
            with pytest.raises(RuntimeError, match="another trio run"):
                await value.aclose()

        await trio.to_thread.run_sync(trio.run, close)
        assert log == []


def test_a5_closed_in_a_later_run() -> None:
    log: list[str] = []

    async def main() -> Value:
        async with Value("value", log) as value:
            return value

    trio.run(trio.run(main).aclose)
    assert log == whole("value")


async def test_a2_needs_no_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("ringtls._drivers.trio.open_for_event_loop", refuse)
    log: list[str] = []
    async with Value("value", log, Value("part", log)):
        pass
    assert log == whole("value", "part")


async def test_a3_logging_is_guarded(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise AssertionError("a filter")

    monkeypatch.setattr(logging, "raiseExceptions", False)

    log: list[str] = []
    logger = logging.getLogger("ringtls")
    logger.addFilter(refuse)
    try:
        await Endless("value", log, Stuck("stuck", log), Value("part", log)).aclose()
    finally:
        logger.removeFilter(refuse)
    assert log == ["value stopped at 5", "stuck closed at 1005", *whole("part")]
