"""Work for a system task, of which somebody hears whatever it raises (rule C16)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio
from outcome import acapture

__all__ = ["Task"]


class Task:
    """Work for a system task, shielded there, and who hears of what it raises.

    What is raised at the entry of ``run`` meets no handler of ours. Then nothing refers to this
    object any more, and its finalizer tells.
    """

    __slots__ = ("_fail", "_work")

    def __init__(
        self, work: Callable[[], Awaitable[None]], fail: Callable[[BaseException], object]
    ) -> None:
        self._work = work
        self._fail: Callable[[BaseException], object] | None = fail

    def start(self, start_task: Callable[[Callable[[], Awaitable[object]]], None]) -> bool:
        """Run it. False if there is no task, and ``fail`` has heard why."""
        try:
            start_task(partial(acapture, self.run))
        except BaseException as error:
            self.fail(error)
            return False
        return True

    async def run(self) -> None:
        try:
            with trio.CancelScope(shield=True):
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
