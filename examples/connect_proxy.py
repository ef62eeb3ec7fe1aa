"""A CONNECT proxy over TLS (RFC 9110, section 9.3.6), by relay: what is no orderly end stays none.

python examples/connect_proxy.py PORT CERTIFICATE KEY
"""

from __future__ import annotations

import argparse
import ssl

import trio

import ringtls


async def handle(client: ringtls.TlsStream) -> None:
    try:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            data = await client.receive_some(1)  # what follows the head belongs to the other side
            if not data or len(head) > 8192:
                return
            head += data
        method, target, _ = head.split(b" ", 2)
        host, _, port = target.decode("ascii").rpartition(":")
        if method != b"CONNECT":
            await client.send_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        async with await ringtls.open_tcp_stream(host, int(port)) as server:
            await client.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            print(target.decode("ascii"), await ringtls.relay(client, server), flush=True)
    except (trio.BrokenResourceError, OSError, ValueError) as error:
        print(error, flush=True)


async def main(port: int, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with trio.open_nursery() as nursery:
        serve = ringtls.serve_tls_over_tcp
        listeners = await nursery.start(serve, handle, port, context)
        print(f"https://localhost:{listeners[0].port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("certificate")
    parser.add_argument("key")
    arguments = parser.parse_args()
    trio.run(main, arguments.port, arguments.certificate, arguments.key)
