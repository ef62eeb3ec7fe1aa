"""The rules hold over the ring, and over a trio stream with the adapter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ringtls import SocketStream

from ..support import peer


@pytest.fixture(params=[SocketStream, peer.trio_socket_stream], ids=["ring", "adapter"])
def transport(request: pytest.FixtureRequest) -> Iterator[None]:
    """What ``meet`` puts below TLS, for the tests that use this."""
    peer.transport = request.param
    yield
    peer.transport = SocketStream
