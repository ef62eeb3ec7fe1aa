"""AsyncDestructor: an end for the values of any class, which runs once, whatever becomes of them.

This is the class that users derive from; _destruction.py has the life of that end, and its rules.

Rules:

1. A value has its record, a Destruction, before its ``__init__`` begins.
2. How ``__init__`` ended says what there is to destroy (rule 6 of _destruction.py). Classes may
   get theirs late (dataclasses do), so it is wrapped when the first value is made: in each class
   that has one, as any may be the first to be called, and with borrowed() arguments. Which is the
   next is left to the class of the value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, final

import trio
from trio.lowlevel import enable_ki_protection

from ._destruction import Destruction, Made, destruction_of
from ._drivers.trio import TrioDriver
from ._ownership import RECORD
from ._streams.closing import checked_timeout

if TYPE_CHECKING:
    from typing import Self

__all__ = ["AsyncDestructor"]


class AsyncDestructor(trio.abc.AsyncResource):
    """A base class for what has an end that must run: once, to its end, and whatever happens.

    A subclass writes its end as ``async def adestroy(self)``. It runs on the first of: leaving
    ``async with value``, ``await value.aclose()``, the value being dropped, the end of the trio
    run. Afterwards the attributes that are async resources (that have ``aclose``) are closed, one
    after the other, in the order in which they were first assigned; borrowed() exempts one. A
    class without an ``adestroy`` has this alone.

    It works for any class: with ``__slots__``, a dataclass, in a hierarchy (``adestroy`` calls
    ``await super().adestroy()`` like any other method). It needs no ring. A value can be made, and
    used, inside of ``trio.run()`` only, and not be copied.

    A value that is dropped, or open at the end of the run, gives a ResourceWarning that says where
    it was made, and is destroyed in the background; the run waits. What that raises is logged (the
    logger is "ringtls"). A value whose ``__init__`` raises has its attributes closed, and no more.

    Raises:
      RuntimeError: it is made outside of a trio run.
      TypeError: at the definition of a subclass: it has a ``__del__``, or an ``adestroy`` that is
        not async.
    """

    __slots__ = (RECORD, "__weakref__")

    __destruction: Destruction

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__del__ is not AsyncDestructor.__del__:
            raise TypeError(f"{cls.__name__} has a __del__: write 'async def adestroy' instead")
        adestroy = cls.__dict__.get("adestroy")
        if isinstance(adestroy, FunctionType) and not (
            iscoroutinefunction(adestroy) or hasattr(adestroy, "__wrapped__")
        ):
            raise TypeError(f"{cls.__name__}.adestroy must be 'async def', without 'yield'")
        timeout = cls.__dict__.get("destroy_timeout")
        if isinstance(timeout, (int, float)):
            checked_timeout(timeout)

    if not TYPE_CHECKING:  # type checkers are to look at __init__, and at what a class declares

        @enable_ki_protection
        def __new__(cls, *args: object, **kwargs: object) -> Self:
            try:
                driver = TrioDriver.current()
            except RuntimeError:
                raise RuntimeError(
                    f"a {cls.__name__} can be made only inside trio.run(), which sees to its end"
                ) from None
            made = Made.NOT_BEGUN if _guard_init(cls) else Made.YES
            if made is Made.YES and (args or kwargs):
                raise TypeError(f"{cls.__name__}() takes no arguments")
            value = super().__new__(cls)
            destruction = Destruction(driver, value, made)
            object.__setattr__(value, RECORD, destruction)
            destruction.hold_the_run()
            return value

        @enable_ki_protection
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, self.__destruction.ownership.assigned(name, value))

        @enable_ki_protection
        def __delattr__(self, name: str) -> None:
            super().__delattr__(name)
            self.__destruction.ownership.deleted(name)

    async def adestroy(self) -> None:
        """The end, to be written by a subclass. Called once, by ringtls: call ``aclose()``.

        It is not cancelled by what cancels who closes the value, but after ``destroy_timeout``.
        It runs in a task of its own: a nursery or cancel scope that a method has entered can't be
        left here. It may call methods that use ``check_open``, and close what it likes.
        """

    @property
    def destroy_timeout(self) -> float:
        """Seconds that ``adestroy`` may take, by default 5; then it is cancelled. They pass by the
        run's clock, and in real time where that stands still.

        To be set on a value, or by a subclass: ``destroy_timeout = 30``.

        Raises:
          TypeError, ValueError: when it is set: it is negative or not a number.
        """
        return self.__destruction.timeout

    @destroy_timeout.setter
    def destroy_timeout(self, seconds: float) -> None:
        self.__destruction.timeout = checked_timeout(seconds)

    @final
    @enable_ki_protection
    async def aclose(self) -> None:
        """Destroy the value, and wait until that is done; later calls do nothing.

        Called again meanwhile, from another task, it waits as well. Called by the value's own end,
        also if it is a part of that which closes what owns it, it does not wait.

        Not a cancellation point: a cancellation or KeyboardInterrupt comes out at the caller's next
        checkpoint. ``adestroy`` has ``destroy_timeout`` all the same; an attribute that is not of
        ringtls then has 5 seconds, as in aclose_all().

        Raises:
          ExceptionGroup: what ``adestroy`` and the closing of attributes raised, in this order.
            A BaseExceptionGroup if one is not an Exception. The first caller gets it.
          RuntimeError: the value is of another trio run, or of the parent process.
        """
        await self.__destruction.close(self)

    @final
    def check_open(self) -> None:
        """For methods that can't be used after the end: raise if that has begun.

        ``adestroy``, and what it calls and waits for, may still use them.

        Raises:
          trio.ClosedResourceError: its end has begun.
          RuntimeError: it belongs to the parent process.
        """
        self.__destruction.check_open()

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        self.check_open()
        return self

    @enable_ki_protection
    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __enter__(self) -> NoReturn:
        raise TypeError(f"use 'async with' with a {type(self).__name__}, not 'with'")

    def __exit__(self, *exc_info: object) -> None:
        raise AssertionError("__enter__ does not return")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can't be copied or pickled: it ends once")

    def __del__(self) -> None:
        if hasattr(self, RECORD):  # else its making was broken off
            self.__destruction.drop(self)


def _guard_init(cls: type[AsyncDestructor]) -> bool:
    """Have the class' ``__init__`` say how it ended (rule 2). False if it has none."""
    if cls.__init__ is object.__init__:
        return False
    for each in cls.__mro__:
        if AsyncDestructor in each.__mro__ and "__init__" in vars(each) and not _is_guarded(each):
            _guard(each, each.__init__)  # type: ignore[misc]
    if not _is_guarded(cls):  # it has that of a class that is no AsyncDestructor
        _guard(cls, lambda self, *args, **kwargs: super(cls, self).__init__(*args, **kwargs))
    return True


def _is_guarded(cls: type[AsyncDestructor]) -> bool:
    return getattr(cls.__init__, "guard", None) is cls.__init__  # wraps() copies what it has


def _guard(cls: type[AsyncDestructor], init: Callable[..., None]) -> None:
    @wraps(cls.__init__)
    def guarded(self: AsyncDestructor, *args: Any, **kwargs: Any) -> None:
        destruction = destruction_of(self)
        assert destruction is not None
        lend = destruction.ownership.lend
        is_outermost = destruction.made is not Made.NOT_YET
        destruction.made = Made.NOT_YET
        try:
            init(self, *map(lend, args), **{name: lend(kwargs[name]) for name in kwargs})
        except BaseException:
            if is_outermost:
                destruction.was_never_made(self)
            raise
        if is_outermost:
            destruction.made = Made.YES

    guarded.guard = guarded  # type: ignore[attr-defined]
    cls.__init__ = guarded  # type: ignore[assignment, method-assign]
