"""gevent's greenlets and a thread that waits for a ring do not go together."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from .support.waiting import LIMIT

GREENLETS = """
import socket, sys
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent
from ringtls import blocking
ours, theirs = socket.socketpair()
with ours, theirs:
    try:
        blocking.SocketStream(ours).close()
    except RuntimeError as error:
        print(error)
        theirs.send(b"not lost")
        assert ours.recv(100) == b"not lost"
    else:
        print("works")
"""


@pytest.mark.skipif(find_spec("gevent") is None, reason="gevent is not installed")
@pytest.mark.parametrize(
    ("how", "words"), [("patched", "stop all greenlets of its thread"), ("unpatched", "works")]
)
def test_under_gevent(how: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GREENLETS, how],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.stderr == ""
    assert words in done.stdout
