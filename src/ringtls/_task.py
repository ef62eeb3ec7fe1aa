"""Work for a task of ours, of which somebody hears whatever it raises (rule C16), and calls of the
user's code in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from types import FunctionType

import trio
from outcome import acapture
from trio.lowlevel import current_task, enable_ki_protection

__all__ = ["Task", "call_user"]

#: It is the first frame of a task, where a KeyboardInterrupt would meet no handler of ours.
_acapture = enable_ki_protection(FunctionType(acapture.__code__.replace(), acapture.__globals__))


class Task:
    """Work for a task of its own, and who hears of what it raises.

    It is shielded there; but for what is to hear of a cancellation, and returns then.

    What is raised at the entry of ``run`` meets no handler of ours. Then nothing refers to this
    object any more, and its finalizer tells.
    """

    __slots__ = ("_fail", "_shield", "_work")

    def __init__(
        self,
        work: Callable[[], Awaitable[None]],
        fail: Callable[[BaseException], object],
        *,
        shield: bool = True,
    ) -> None:
        self._work = work
        self._shield = shield
        self._fail: Callable[[BaseException], object] | None = fail

    def start(self, start_task: Callable[[Callable[[], Awaitable[object]]], None]) -> bool:
        """Run it. False if there is no task, and ``fail`` has heard why."""
        try:
            start_task(partial(_acapture, self.run))
        except BaseException as error:
            self.fail(error)
            return False
        return True

    async def run(self) -> None:
        try:
            with trio.CancelScope(shield=self._shield):
                await self._work()
            self._fail = None
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        fail, self._fail = getattr(self, "_fail", None), None  # None: it was only half made
        if fail is not None:
            with suppress(BaseException):
                fail(error)

    def __del__(self) -> None:
        self.fail(RuntimeError("a task of ringtls was lost"))


async def call_user(function: Callable[[], Awaitable[object]]) -> None:
    """Await what the user's code does.

    A GeneratorExit comes out only where this coroutine is finalized, because the run has crashed.
    One that the code raises itself is a RuntimeError, as Python makes it of a StopIteration.
    """
    task = current_task()
    try:
        await function()
    except GeneratorExit as error:
        if _runs(task):
            raise RuntimeError("GeneratorExit was raised") from error
        raise


def _runs(task: trio.lowlevel.Task) -> bool:
    try:
        return current_task() is task
    except RuntimeError:  # no task does
        return False
