"""What the tests share: certificates, rings without an event loop, connections."""

from __future__ import annotations

import compileall
import gc
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import ringtls
from ringtls import SocketStream
from ringtls._cli.certificates import client_context, make_certificate, server_context
from ringtls._engine.ring import Ring

from .support import peer
from .support.streams import tcp_pair

ENGINE = Path(__file__).parent.parent / "csrc"


def pytest_configure(config: pytest.Config) -> None:
    """Tests send themselves SIGINT, which nohup and a script's "&" have this process ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # of xdist
        compile_for_children()


def compile_for_children() -> None:
    """An editable install reads compiled modules but writes none, and tests start many programs."""
    compileall.compile_dir(Path(ringtls.__file__).parent, quiet=2)


def pytest_collection_finish() -> None:
    """What is there before the first test need not be looked at by each collection of garbage."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Contexts:
    """SSL contexts of two sides that trust each other."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    ca: Path
    certificate: Path
    key: Path

    def of_version(self, version: ssl.TLSVersion) -> Contexts:
        """The same for one version of TLS."""
        only = contexts_of(self.ca, self.certificate, self.key)
        for context in (only.server, only.client):
            context.minimum_version = context.maximum_version = version
        return only


def contexts_of(ca: Path, certificate: Path, key: Path) -> Contexts:
    server = server_context(certificate, key)
    server.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Debian 12's Python sets it
    return Contexts(server, client_context(ca), ca, certificate, key)


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    made = make_certificate(tmp_path_factory.mktemp("certificates"))
    return contexts_of(made.ca, made.certificate, made.key)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def versioned_contexts(request: pytest.FixtureRequest, contexts: Contexts) -> Contexts:
    return contexts.of_version(request.param)


@pytest.fixture
def ring() -> Iterator[Ring]:
    """A ring with a small pool; at the end it must be drained."""
    ring = Ring(buffers=4, buffer_size=4096)
    yield ring
    assert ring.close(timeout=5.0)


@pytest.fixture(scope="session")
def compiled_engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Object files of csrc/, by module."""
    directory = tmp_path_factory.mktemp("engine")
    sources = sorted(ENGINE.glob("*.c"))
    build = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-c", *map(str, sources)]
    subprocess.run(build, check=True, cwd=directory)
    return {source.stem: directory / f"{source.stem}.o" for source in sources}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end of a connection, and the peer's."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=[SocketStream, peer.adapted_socket_stream], ids=["ring", "adapter"])
def transport(request: pytest.FixtureRequest) -> peer.MakeTransport:
    """The rules hold over the ring, and over a trio stream with the adapter."""
    make: peer.MakeTransport = request.param
    return make


@pytest.fixture
def meet(transport: peer.MakeTransport) -> peer.Meet:
    """``peer.meet`` over each transport."""
    return partial(peer.meet, transport=transport)
