"""The command ``ringtls serve``, which this program becomes.

Its listening sockets are made here and inherited, so a client that connects before it runs waits in
their queues. The second is for its figures.
"""

from __future__ import annotations

import os
import socket
import sys

from .files import make_files
from .start import BACKLOG, HOST, announce, parse_arguments


def main() -> None:
    arguments = parse_arguments()
    make_files(arguments.directory)
    listeners = [socket.create_server((HOST, 0), backlog=BACKLOG) for _ in range(2)]
    for listener in listeners:
        listener.set_inheritable(True)
    files, figures = (f"fd://{listener.fileno()}" for listener in listeners)
    announce(*(listener.getsockname()[1] for listener in listeners))
    command = ["-m", "ringtls", "serve", "--bind", files, "--metrics", figures]
    command += ["--directory", str(arguments.directory)]
    command += ["--certfile", str(arguments.certificate), "--keyfile", str(arguments.key)]
    os.execv(sys.executable, [sys.executable, *command])


main()
