"""examples/postgresql_client.py, against PostgreSQL and against a server that plays a script."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
import trio

from examples.postgresql_client import Client, RefusedError, connect
from ringtls import CloseOutcome

from .conftest import Contexts
from .support import postgresql
from .support.peer import Peer
from .support.postgresql import PASSWORD, USER, PostgresqlServer, message, receive
from .support.scripted import playing
from .support.waiting import cut_off, until

TERMINATE = b"X\0\0\0\4"


# A script


def hear_terminate(peer: Peer) -> None:
    end = peer.end()
    assert (end.data, end.is_clean) == (TERMINATE, True), end


def answer_query(peer: Peer) -> None:
    postgresql.log_in(peer)
    assert receive(peer, b"Q") == b"select it\0"
    row = struct.pack("!Hi3si", 2, 3, b"one", -1)
    answer = message(b"T", b"\0\0") + message(b"D", row) + message(b"C", b"SELECT 1\0")
    for byte in answer + message(b"Z", b"I"):
        peer.send(bytes([byte]))
    hear_terminate(peer)


async def test_a_query(contexts: Contexts) -> None:
    with playing(contexts, answer_query, begin=postgresql.begin) as port:
        async with await connect("localhost", port, contexts.client) as stream:
            client = Client(stream)
            await client.log_in(USER, "postgres", PASSWORD)
            assert await client.query("select it") == [("one", None)]


async def test_a_query_that_is_refused_or_cancelled(contexts: Contexts) -> None:
    is_asked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def refuse(peer: Peer) -> None:
        postgresql.log_in(peer)
        receive(peer, b"Q")
        refusal = message(b"E", b"SERROR\0C42601\0Mno such thing\0\0")
        peer.send(refusal + message(b"Z", b"I"))
        receive(peer, b"Q")
        token.run_sync_soon(is_asked.set)
        hear_terminate(peer)

    with playing(contexts, refuse, begin=postgresql.begin) as port:
        async with (
            trio.open_nursery() as nursery,
            await connect("localhost", port, contexts.client) as stream,
        ):
            client = Client(stream)
            await client.log_in(USER, "postgres", PASSWORD)
            with pytest.raises(RefusedError, match="no such thing"):
                await client.query("select nothing")
            nursery.start_soon(client.query, "select for ever")
            await is_asked.wait()
            nursery.cancel_scope.cancel()


async def test_a_server_without_tls(contexts: Contexts) -> None:
    def refuse(peer: Peer) -> None:
        peer.sock.sendall(b"N")
        assert peer.sock.recv(1) == b""  # not even the user's name

    with (
        playing(contexts, refuse, begin=postgresql.begin_in_plain_text) as port,
        pytest.raises(RefusedError, match="does not speak TLS"),
    ):
        await connect("localhost", port, contexts.client)


async def test_what_comes_before_tls_is_not_taken_for_tls(contexts: Contexts) -> None:
    """Else somebody in between could have put it there (CVE-2021-23222)."""

    def add(peer: Peer) -> None:
        peer.sock.sendall(b"S" + message(b"R", struct.pack("!I", 0)) + message(b"Z", b"I"))
        peer.end()

    with playing(contexts, add, begin=postgresql.begin_in_plain_text) as port:
        async with await connect("localhost", port, contexts.client) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await Client(stream).log_in(USER, "postgres", PASSWORD)


def know_another_password(peer: Peer) -> None:
    postgresql.log_in(peer, "another password")
    hear_terminate(peer)


def want_plain_password(peer: Peer) -> None:
    receive(peer, b"")
    peer.send(message(b"R", struct.pack("!I", 3)))
    hear_terminate(peer)


def want_nothing(peer: Peer) -> None:
    receive(peer, b"")
    peer.send(message(b"R", struct.pack("!I", 0)) + message(b"Z", b"I"))
    hear_terminate(peer)


@pytest.mark.parametrize("script", [know_another_password, want_plain_password, want_nothing])
async def test_a_server_that_can_not_be_trusted(
    contexts: Contexts, script: Callable[[Peer], None]
) -> None:
    with playing(contexts, script, begin=postgresql.begin) as port:
        async with await connect("localhost", port, contexts.client) as stream:
            with pytest.raises(RefusedError, match="password"):
                await Client(stream).log_in(USER, "postgres", PASSWORD)


# PostgreSQL


@pytest.fixture(scope="module")
def server(
    contexts: Contexts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresqlServer]:
    if postgresql.BINARIES is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with PostgresqlServer.running(contexts, tmp_path_factory.mktemp("postgresql") / "log") as made:
        yield made


async def test_postgresql(contexts: Contexts, server: PostgresqlServer) -> None:
    async with await connect("localhost", server.port, contexts.client) as stream:
        client = Client(stream)
        await client.log_in(USER, "postgres", PASSWORD)
        rows = await client.query(
            "select n, null, repeat('x', 100000) from generate_series(1, 3) n"
        )
        assert rows == [(str(n), None, "x" * 100000) for n in (1, 2, 3)]
        with pytest.raises(RefusedError, match="division by zero"):
            await client.query("select 1 / 0")
        assert await client.query("select ssl from pg_stat_ssl where pid = pg_backend_pid()") == [
            ("t",)
        ]
    assert stream.close_outcome is CloseOutcome.CLEAN


async def test_postgresql_refuses_a_wrong_password(
    contexts: Contexts, server: PostgresqlServer
) -> None:
    async with await connect("localhost", server.port, contexts.client) as stream:
        with pytest.raises(RefusedError, match="password authentication failed"):
            await Client(stream).log_in(USER, "postgres", "not the password")


async def test_postgresql_hears_of_the_end(contexts: Contexts, server: PostgresqlServer) -> None:
    """Of a query that is cancelled, too: when it is over, Terminate comes."""
    async with await connect("localhost", server.port, contexts.client) as other:
        holder = Client(other)
        await holder.log_in(USER, "postgres", PASSWORD)
        await holder.query("select pg_advisory_lock(1)")
        async with await connect("localhost", server.port, contexts.client) as stream:
            client = Client(stream)
            await client.log_in(USER, "postgres", PASSWORD)
            ((process,),) = await client.query("select pg_backend_pid()")
            await cut_off(client.query, "select pg_advisory_lock(1)")
    await until(lambda: f"[{process}] LOG:  disconnection" in server.log())
    assert "unexpected EOF" not in server.log()
