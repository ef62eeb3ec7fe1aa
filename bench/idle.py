"""``python -m bench.idle PORT CA COUNT``: a client that opens connections and says nothing.

It says "open" when the handshakes are done, and goes when its input ends.
"""

from __future__ import annotations

import socket
import ssl
import sys

from .server import HOST


def main() -> None:
    port, ca, count = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca)
    connections = [
        context.wrap_socket(
            socket.create_connection((HOST, int(port))), server_hostname="localhost"
        )
        for _ in range(int(count))
    ]
    print("open", flush=True)
    sys.stdin.read()
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main()
