"""The public names, and what they promise to type checkers."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import ringtls
import ringtls.blocking


def test_public_names() -> None:
    assert sorted(ringtls.__all__) == [
        "AsyncDestructor",
        "CloseOutcome",
        "Operation",
        "RelayDirection",
        "RelayEnd",
        "RelayOutcome",
        "RingUnavailableError",
        "SocketListener",
        "SocketStream",
        "Statistics",
        "TlsListener",
        "TlsStream",
        "TruncationError",
        "aclose_all",
        "borrowed",
        "must_complete",
        "open_tcp_listeners",
        "open_tcp_stream",
        "open_tls_over_tcp_listeners",
        "open_tls_over_tcp_stream",
        "open_unix_listeners",
        "open_unix_socket",
        "register_as_trio",
        "relay",
        "replace",
        "serve_tcp",
        "serve_tls_over_tcp",
        "statistics",
    ]
    # pytest rewrites what an installed plugin belongs to, and adds names with an @.
    public = {name for name in vars(ringtls) if name[0] not in "_@"}
    assert public <= {
        *ringtls.__all__,
        "TYPE_CHECKING",
        "anyio",
        "blocking",
        "httpcore",
        "hypercorn",
        "lint",
        "pytest_plugin",
    }


def test_names_that_are_not_there() -> None:
    assert {*ringtls.__all__, "__doc__"} <= set(dir(ringtls))
    for name in ("nothing", "_nothing"):
        with pytest.raises(AttributeError, match=f"'ringtls' has no attribute '{name}'"):
            getattr(ringtls, name)


def test_its_plugins_cost_nothing_where_ringtls_is_not_used() -> None:
    code = """if True:
        import sys
        import ringtls.lint, ringtls.pytest_plugin
        assert not {"trio", "ssl", "ringtls._engine._native"} & set(sys.modules)
        from ringtls import *
        TlsStream
        """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_everything_public_is_documented() -> None:
    for name in ringtls.__all__:
        assert inspect.getdoc(getattr(ringtls, name)), name


def test_everything_public_is_in_the_reference() -> None:
    """Wheels are tested without hypercorn, so that is not imported."""
    pages = (Path(__file__).parent.parent / "docs" / "api").glob("*.md")
    hypercorn = Path(ringtls.__file__).parent / "hypercorn" / "__init__.py"
    [of_hypercorn] = re.findall(r"^__all__ = (\[.*?\])", hypercorn.read_text(), re.M | re.S)
    named = [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    assert sorted(named) == sorted(
        [
            "ringtls.anyio",
            "ringtls.blocking",
            *(f"ringtls.blocking.{n}" for n in ringtls.blocking.__all__),
            "ringtls.httpcore",
            "ringtls.hypercorn",
            *(f"ringtls.hypercorn.{n}" for n in ast.literal_eval(of_hypercorn)),
            *(f"ringtls.{n}" for n in ringtls.__all__),
        ]
    )


def test_typed() -> None:
    assert (Path(ringtls.__file__).parent / "py.typed").exists()


def test_streams_are_trios() -> None:
    assert issubclass(ringtls.SocketStream, trio.abc.HalfCloseableStream)
    assert issubclass(ringtls.TlsStream, trio.abc.HalfCloseableStream)
    assert issubclass(ringtls.SocketListener, trio.abc.Listener)
    assert issubclass(ringtls.TlsListener, trio.abc.Listener)
    assert issubclass(ringtls.TruncationError, trio.BrokenResourceError)
    assert issubclass(ringtls.RingUnavailableError, OSError)
