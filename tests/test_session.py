"""TlsSession: TLS without I/O."""

from __future__ import annotations

import ssl

import pytest

from ringtls import TruncationError
from ringtls._streams.session import TlsSession

from .conftest import Contexts

Pair = tuple[TlsSession, TlsSession]


def sessions(contexts: Contexts, *, https_compatible: bool = False) -> Pair:
    """Client and server, the handshake done; the server holds its session tickets back."""
    client = TlsSession(
        contexts.client,
        server_side=False,
        server_hostname="localhost",
        https_compatible=https_compatible,
    )
    server = TlsSession(
        contexts.server, server_side=True, server_hostname=None, https_compatible=https_compatible
    )
    while not (client.handshake_done and server.handshake_done):
        for one, other in ((client, server), (server, client)):
            if not one.handshake_done:
                one.handshake()
            if one.output:
                other.feed(one.take_output())
    return client, server


def carry(source: TlsSession, destination: TlsSession) -> None:
    destination.feed(source.take_output())


@pytest.fixture
def pair(versioned_contexts: Contexts) -> Pair:
    return sessions(versioned_contexts)


def test_data(pair: Pair) -> None:
    client, server = pair
    assert server.read(100) is None
    assert client.write(b"hello")
    carry(client, server)
    assert server.read(2) == b"he"
    assert server.read(100) == b"llo"
    assert server.read(100) is None


def test_a_record_in_two_parts(pair: Pair) -> None:
    client, server = pair
    client.write(b"hello")
    record = client.take_output()
    server.feed(record[:7])
    assert server.read(100) is None
    server.feed(record[7:])
    assert server.read(100) == b"hello"


def test_close_notify_reads_as_empty(pair: Pair) -> None:
    client, server = pair
    client.write(b"bye")
    client.close_output(keep_unread=True)
    client.close_output(keep_unread=True)
    carry(client, server)
    assert server.read(100) == b"bye"
    assert server.read(100) == b""
    assert server.read(100) == b""
    assert server.close_notify_received
    assert client.close_notify_sent
    assert not client.output


def test_both_ends_close(pair: Pair) -> None:
    for one in pair:
        one.close_output(keep_unread=True)
    client, server = pair
    outputs = client.take_output(), server.take_output()
    server.feed(outputs[0])
    client.feed(outputs[1])
    assert client.read(1) == server.read(1) == b""


def test_what_came_before_the_close_stays_readable(pair: Pair) -> None:
    client, server = pair
    data = bytes(range(256)) * 200
    client.write(data)
    client.close_output(keep_unread=True)
    carry(client, server)
    server.close_output(keep_unread=True)
    received = b""
    while piece := server.read(1000):
        received += piece
    assert received == data


def test_a_partial_record_at_the_close(pair: Pair) -> None:
    """unwrap() tries to read: half a record must not be lost by that."""
    client, server = pair
    client.write(b"in two parts")
    record = client.take_output()
    server.feed(record[:9])
    server.close_output(keep_unread=True)
    server.feed(record[9:])
    assert server.read(100) == b"in two parts"


def test_the_end_of_input_without_close_notify(pair: Pair) -> None:
    client, server = pair
    client.write(b"half a")
    carry(client, server)
    server.feed_end()
    assert server.read(100) == b"half a"
    for _ in range(2):
        with pytest.raises(TruncationError, match="incomplete"):
            server.read(100)
    server.write(b"still possible")
    carry(server, client)
    assert client.read(100) == b"still possible"


@pytest.mark.parametrize("https_compatible", [False, True])
def test_a_context_that_hides_truncation(contexts: Contexts, https_compatible: bool) -> None:
    contexts = contexts.of_version(ssl.TLSVersion.TLSv1_3)
    contexts.client.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    client, _ = sessions(contexts, https_compatible=https_compatible)
    client.feed_end()
    if https_compatible:
        assert client.read(1) == b""
    else:
        with pytest.raises(TruncationError):
            client.read(1)


def test_the_end_of_input_during_the_handshake(contexts: Contexts) -> None:
    client = TlsSession(
        contexts.client, server_side=False, server_hostname="localhost", https_compatible=False
    )
    assert not client.handshake()
    client.feed_end()
    with pytest.raises(ssl.SSLEOFError, match="during the handshake") as caught:
        client.handshake()
    assert caught.value.reason == "UNEXPECTED_EOF_WHILE_READING"


def test_garbage_queues_an_alert_and_nothing_after_it(pair: Pair) -> None:
    client, server = pair
    server.feed(b"\x17\x03\x03\x00\x02ab")
    with pytest.raises(ssl.SSLError):
        server.read(100)
    server.close_output(keep_unread=True)
    assert not server.close_notify_sent
    carry(server, client)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.read(100)


def test_tickets_wait_for_something_else_to_send(contexts: Contexts) -> None:
    client, server = sessions(contexts.of_version(ssl.TLSVersion.TLSv1_3))
    assert not server.output
    server.close_output(keep_unread=True)
    assert len(server.take_output()) > 100  # tickets, then the alert
