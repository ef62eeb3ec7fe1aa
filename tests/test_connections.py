"""The table of a server's connections: ringtls._cli.server.connections."""

from __future__ import annotations

import pytest

from ringtls._cli.server import connections
from ringtls._cli.server.connections import LOOKS, Connection, Connections, Cut, Limits, Wait

LIMIT = 8.0


class Moving:
    """An activity that the test moves."""

    def __init__(self) -> None:
        self.place = 0
        self.timed_out = 0

    def moved(self) -> int:
        return self.place

    def time_out(self) -> None:
        self.timed_out += 1


def new_connection() -> Connection:
    limits = Limits(dict.fromkeys(Wait, LIMIT))
    return Connection(None, "a peer", Connections(limits))  # type: ignore[arg-type]


def test_who_is_waited_for_too_long_is_cut() -> None:
    connection = new_connection()
    connection.begin(Wait.HANDSHAKE)
    connection.expire(connection.deadline)
    assert connection.cut is Cut.TIMEOUT


@pytest.mark.parametrize("wait", [Wait.ROOM, Wait.OWED])
def test_who_takes_in_something_has_time(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also who owes something: it may not have come yet to what it is to answer."""
    taken = 0
    monkeypatch.setattr(connections, "taken_in", lambda stream: taken)
    connection = new_connection()
    connection.stream = None  # type: ignore[assignment]
    connection.begin(wait)
    for _ in range(3 * LOOKS):
        taken += 1
        connection.expire(connection.deadline)
        assert connection.cut is None
    for _ in range(LOOKS):
        connection.expire(connection.deadline)
    assert connection.cut is Cut.TIMEOUT


def test_an_activity_has_time_as_long_as_it_moves() -> None:
    connection, activity = new_connection(), Moving()
    connection.begin(Wait.NOTHING)
    connection.watch(activity, Wait.NEXT_REQUEST)
    for _ in range(3 * LOOKS):
        activity.place += 1
        connection.expire(connection.deadline)
    assert not activity.timed_out
    last = connection.deadline - LIMIT / LOOKS
    while not activity.timed_out:
        now = connection.deadline
        connection.expire(now)
    assert now - last == LIMIT
    assert activity.timed_out == 1
    assert connection.cut is None, "the activity sees to its end"
    assert connection.deadline == float("inf")
