"""A pytest plugin: tests of others, with ringtls in the place of trio's sockets and TLS.

Rules:

1. What is replaced is the name ``trio``, or a class of trio's, in the modules of the suite alone:
   ringtls itself goes on to use trio.
2. Functions that open and serve, and ``SSLStream`` as a constructor, are ringtls'. ``SocketStream``
   and the listeners stay trio's, so ``isinstance`` asks what ``register_as_trio`` has registered.
3. A test that is expected to fail must fail. docs/differences-from-trio.md says why, for each
   (tests/test_frameworks.py compares the two).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import trio

import ringtls

__all__ = ["SUITES", "Suite"]

#: In a test's mark: it would wait for ever.
ENDLESS = {"test_unwrap"}


@dataclass(frozen=True)
class Suite:
    """The tests of a project."""

    #: Names of modules, or how they begin.
    modules: tuple[str, ...]

    #: Tests in which ringtls differs on purpose.
    differences: frozenset[str] = field(default_factory=frozenset)


SUITES = {
    "trio": Suite(
        ("trio._tests.test_ssl",),
        frozenset(
            {
                "test_SSLListener",
                "test_SSLStream_generic",
                "test_closing_nice_case",
                "test_get_channel_binding_before_handshake",
                "test_receive_error_during_handshake",
                "test_selected_alpn_protocol_before_handshake",
                "test_selected_npn_protocol_before_handshake",
                "test_selected_npn_protocol_when_not_set",
                "test_send_all_fails_in_the_middle",
                "test_send_error_during_handshake",
                "test_ssl_bad_shutdown",
                "test_ssl_bad_shutdown_but_its_ok",
                "test_ssl_handshake_failure_during_aclose",
                "test_ssl_https_compatibility_disagreement",
                "test_ssl_only_closes_stream_once",
                "test_unwrap",
                "test_wait_writable_calls_underlying_wait_writable",
            }
        ),
    ),
    "trio-websocket": Suite(("trio_websocket", "test_connection", "tests.test_connection")),
    "websockets": Suite(("websockets.trio", "tests.trio")),
}

REPLACED = {
    "SSLListener": ringtls.TlsListener,
    "SSLStream": ringtls.TlsStream,
    "open_ssl_over_tcp_listeners": ringtls.open_tls_over_tcp_listeners,
    "open_ssl_over_tcp_stream": ringtls.open_tls_over_tcp_stream,
    "open_tcp_listeners": ringtls.open_tcp_listeners,
    "open_tcp_stream": ringtls.open_tcp_stream,
    "open_unix_socket": ringtls.open_unix_socket,
    "serve_ssl_over_tcp": ringtls.serve_tls_over_tcp,
    "serve_tcp": ringtls.serve_tcp,
}


class _Trio(ModuleType):
    """trio, but for the names in REPLACED."""

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def _substitute(suite: Suite) -> int:
    """Replace the names; returns how many were."""
    substitute = _Trio("trio")
    vars(substitute).update(REPLACED)
    count = 0
    for module in [m for name, m in sys.modules.items() if name.startswith(suite.modules)]:
        for name, ours in (("trio", substitute), *REPLACED.items()):
            trios = trio if name == "trio" else getattr(trio, name)
            if vars(module).get(name) is trios:
                setattr(module, name, ours)
                count += 1
    return count


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    suite = SUITES[os.environ["RINGTLS_SUITE"]]
    ringtls.register_as_trio()
    assert _substitute(suite), "nothing was replaced: these would be tests of trio"
    known = set()
    for item in items:
        name = item.name.partition("[")[0]
        if name in suite.differences:
            known.add(name)
            why = "docs/differences-from-trio.md"
            item.add_marker(pytest.mark.xfail(reason=why, strict=True, run=name not in ENDLESS))
    assert known == suite.differences, f"these are no more: {suite.differences - known}"
