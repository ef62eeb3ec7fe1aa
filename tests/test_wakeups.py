"""A kernel that signals a ring's eventfd late or once is found out, and event loops woken there."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from ringtls import RingUnavailableError
from ringtls._drivers.trio import TrioDriver
from ringtls._engine import wakeups
from ringtls._engine.wakeups import signals_at_once, wakes_event_loops

from .support.engines import io_uring_only
from .support.processes import in_child
from .support.streams import open_fds

SYS_IO_URING_REGISTER = 427
IORING_UNREGISTER_EVENTFD = 5


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What this process has found out so far does not count, and what it finds out now neither."""
    wakes_event_loops.cache_clear()
    yield
    wakes_event_loops.cache_clear()


def rings() -> set[int]:
    """The descriptors of the rings that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # it was the listing's own
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[io_uring]":
                found.add(int(name))
    return found


class SignalsOnce:
    """Takes the eventfd from the kernel after its first signal: so there is no second one."""

    def __init__(self) -> None:
        self._others = rings()
        self.asked = 0

    def __call__(self, fd: int) -> bool:
        self.asked += 1
        if not select.select([fd], [], [], 0)[0]:
            return False
        libc = ctypes.CDLL(None, use_errno=True)
        [ring_fd] = rings() - self._others
        assert not libc.syscall(SYS_IO_URING_REGISTER, ring_fd, IORING_UNREGISTER_EVENTFD, None, 0)
        return True


@io_uring_only
def test_a_kernel_that_signals_once_is_found_out() -> None:
    if not wakes_event_loops():
        pytest.skip("this kernel is one, or is late")
    signals_once = SignalsOnce()
    assert not signals_at_once(signals_once)
    assert signals_once.asked == 2


def test_a_late_signal_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what comes after an RCU grace period is not waited for."""
    patience = []

    class Poll:
        def register(self, fd: int, events: int) -> None:
            pass

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            patience.append(timeout)
            return []

    monkeypatch.setattr(select, "poll", Poll)
    assert not wakes_event_loops()
    assert patience == [0]


@pytest.mark.xfail(
    os.uname().release.startswith(("6.12.117", "6.12.118", "7.")), reason="it signals late"
)
def test_this_kernel_signals_at_once_again_and_again() -> None:
    assert wakes_event_loops()


def test_a_kernel_that_never_signals() -> None:
    asked: list[int] = []

    def is_signalled(fd: int) -> bool:
        asked.append(fd)
        return False

    assert not signals_at_once(is_signalled)
    assert len(asked) == 1


@pytest.mark.parametrize("left", range(7))
def test_a_shortage_of_descriptors_leaves_none_behind(left: int) -> None:
    """Whichever of those that are needed is the first one too many; and it passes."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def use_a_ring() -> None:
        driver = TrioDriver.current()
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_fds() + 64, limits[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                while True:
                    taken.append(os.dup(driver._eventfd.fileno()))
            for _ in range(left):
                os.close(taken.pop())
            with suppress(RingUnavailableError):
                driver.ring  # noqa: B018
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert driver.ring.is_usable

    def run_alone() -> None:
        before = open_fds()
        trio.run(use_a_ring)
        assert open_fds() == before

    in_child(run_alone)  # a thread of another test might end its ring meanwhile


@pytest.mark.parametrize("wakes", [True, False])
def test_an_event_loops_ring_is_as_the_kernel_needs_it(
    monkeypatch: pytest.MonkeyPatch, wakes: bool
) -> None:
    """It is tried once, for all runs of the process."""
    tried = []

    def try_once(is_signalled: object) -> bool:
        tried.append(is_signalled)
        return wakes

    async def is_cooperative() -> bool:
        return TrioDriver.current().ring.cooperative

    monkeypatch.setattr(wakeups, "signals_at_once", try_once)
    assert [trio.run(is_cooperative) for _ in range(3)] == [not wakes] * 3
    assert len(tried) == 1
