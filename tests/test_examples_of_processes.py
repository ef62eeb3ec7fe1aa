"""Examples that serve: processes with clients, which are told to end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import Contexts
from .support.peer import Peer
from .support.waiting import LIMIT

ROOT = Path(__file__).parent.parent


class Example:
    """One of examples/, in a process of its own."""

    def __init__(self, contexts: Contexts, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT / "examples",
            env={**os.environ, "SSL_CERT_FILE": str(contexts.ca)},
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().removesuffix("\n")

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LIMIT)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Example]


@pytest.fixture
def start(contexts: Contexts) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(*command: str) -> Example:
            example = Example(contexts, *command)
            stack.callback(example.end)
            return example

        yield start


def test_a_chat(contexts: Contexts, start: Start) -> None:
    files = [str(contexts.certificate), str(contexts.key)]
    server = start("websocket_chat.py", "serve", "0", *files)
    port = server.hear()

    def join(name: str) -> Example:
        return start("websocket_chat.py", "join", "localhost", port, name)

    alice = join("alice")
    assert alice.hear() == "alice is here"
    bob = join("bob")
    assert [alice.hear(), bob.hear()] == ["bob is here"] * 2
    bob.say("hello, alice")
    assert [alice.hear(), bob.hear()] == ["bob: hello, alice"] * 2
    bob.interrupt()
    assert alice.hear() == "bob has left"
    eve = join("eve")
    assert [alice.hear(), eve.hear()] == ["eve is here"] * 2
    eve.process.communicate("goodbye\n")
    assert eve.process.returncode == 0
    assert [alice.hear(), alice.hear()] == ["eve: goodbye", "eve has left"]
    server.interrupt()
    assert alice.hear() == "the chat is over: CloseReason<code=1001, name=GOING_AWAY, reason=None>"
    assert alice.process.wait(LIMIT) == 0


def test_a_server_with_threads(contexts: Contexts, start: Start) -> None:
    server = start("threaded_server.py", "0", str(contexts.certificate), str(contexts.key))
    port = int(server.hear())
    peers = []
    for _ in range(2):
        peer = Peer(socket.create_connection(("127.0.0.1", port)), contexts, server_side=False)
        peer.handshake()
        peer.send(b"hello")
        assert peer.receive(5) == b"HELLO"
        peers.append(peer)
    first, second = peers
    first.send_close_notify()
    assert first.end().is_clean
    server.process.send_signal(signal.SIGINT)
    second.send(b"still there?")
    assert second.receive(12) == b"STILL THERE?"
    second.send_close_notify()
    assert second.end().is_clean
    assert server.process.wait(LIMIT) == 0
