"""The wait queue of a trio run: nobody is lost, nobody is woken twice, whatever is raised where."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ringtls._drivers import trio_waiting
from ringtls._drivers.trio_waiting import TrioWaitQueue


async def test_all_who_wait_are_woken_once() -> None:
    queue = TrioWaitQueue()
    woken = []

    async def wait(number: int) -> None:
        await queue.wait()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        queue.wake()
        queue.wake()
    assert sorted(woken) == [0, 1, 2]


async def test_c16_a_wake_that_was_broken_off_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. A wake has scheduled the first of two tasks, and an exception comes. 2. The next wake gets
    to both. 3. The first, which sleeps elsewhere when a third comes, is not woken out of that."""
    queue = TrioWaitQueue()
    elsewhere = trio.Event()
    woken = []

    async def wait(number: int) -> None:
        await queue.wait()
        woken.append(number)
        await elsewhere.wait()

    schedule = trio.lowlevel.reschedule

    def schedule_and_raise(*arguments: object) -> None:
        schedule(*arguments)  # type: ignore[arg-type]
        monkeypatch.undo()
        raise MemoryError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait, 1)
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(trio_waiting, "reschedule", schedule_and_raise)
        with pytest.raises(MemoryError):
            queue.wake()
        queue.wake()
        await trio.testing.wait_all_tasks_blocked()
        queue.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == [0, 1]
        elsewhere.set()


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    queue = TrioWaitQueue()

    async def wait() -> None:
        await queue.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            with trio.move_on_after(0) as scope:
                await queue.wait()
            assert scope.cancelled_caught
        assert not queue._others
        queue.wake()


async def test_c2_an_uncancellable_wait() -> None:
    queue = TrioWaitQueue()
    waited = False

    async def wait() -> None:
        nonlocal waited
        await queue.wait_uncancellable()
        waited = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        assert not waited
        queue.wake()
    assert waited
