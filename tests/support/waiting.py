"""How tests wait: for a condition, within a bound that only a fault reaches; never for time."""

from __future__ import annotations

import platform
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

__all__ = [
    "LIMIT",
    "closed_while_it_waits",
    "cut_off",
    "is_in_the_ring",
    "until",
    "wait_until",
    "when_all_wait",
]

#: Seconds after which what should happen is taken for missing. Less than a test may take in all.
LIMIT = 120.0

PAUSE = 0.001

#: The numbers of io_uring_enter, which all architectures share, and of epoll's wait.
SLEEPS = ("426 ", "22 " if platform.machine() == "aarch64" else "232 ")


def wait_until(is_true: Callable[[], object]) -> None:
    """Block until the condition holds."""
    deadline = time.monotonic() + LIMIT
    while not is_true():
        assert time.monotonic() < deadline, f"this did not happen within {LIMIT:g} s"
        time.sleep(PAUSE)


async def until(is_true: Callable[[], object]) -> None:
    """The same for a task."""
    with trio.fail_after(LIMIT):
        while not is_true():
            await trio.sleep(PAUSE)


async def when_all_wait(function: Callable[[], object]) -> None:
    """Call a function once every task waits."""
    await trio.testing.wait_all_tasks_blocked()
    function()


async def closed_while_it_waits(call: Callable[[], Awaitable[object]]) -> None:
    """Make a call that waits until somebody closes what it is made on."""
    with pytest.raises(trio.ClosedResourceError):
        await call()


async def cut_off(function: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Call a function that does not end by itself, and cancel it once every task waits."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(when_all_wait, scope.cancel)
            await function(*arguments)
    assert scope.cancelled_caught
    await trio.lowlevel.checkpoint()  # until then trio holds the Cancelled, and it the frames


def is_in_the_ring(thread: int) -> bool:
    """True while that thread, of this process or a child, sleeps in its ring. See proc(5)."""
    if Path("/proc/self/syscall").exists():
        return Path(f"/proc/{thread}/syscall").read_text().startswith(SLEEPS)
    stack = Path(f"/proc/{thread}/stack").read_text()  # user-mode Linux
    return "io_cqring_wait" in stack or "ep_poll" in stack
