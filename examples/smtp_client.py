"""An SMTP client (RFC 5321), written once for trio and for plain threads.

However the connection is left, the server hears QUIT: by an exception, a cancellation, Ctrl-C. Only
inside of a message it would be a line of that, and is not sent.

    python examples/smtp_client.py [--thread] HOST SENDER RECIPIENT < message
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

import ringtls.blocking

SUBMISSIONS_PORT = 465  # TLS from the first byte: RFC 8314, section 3.3

Open = Callable[[str, int], Awaitable[ringtls.TlsStream]]


class Reply(NamedTuple):
    code: int
    text: str


class RefusedError(Exception):
    """The server answered with an error."""


class Client:
    """One connection."""

    def __init__(self, stream: ringtls.TlsStream) -> None:
        self._stream = stream
        self._received = b""

    async def greet(self, name: str) -> None:
        await self._read_reply()
        await self.command(f"EHLO {name}")
        self._stream.farewell = b"QUIT\r\n"

    async def send_message(self, sender: str, recipients: list[str], message: bytes) -> None:
        await self.command(f"MAIL FROM:<{sender}>")
        for recipient in recipients:
            await self.command(f"RCPT TO:<{recipient}>")
        await self.command("DATA")
        farewell, self._stream.farewell = self._stream.farewell, None
        lines = message.splitlines()
        stuffed = (b"." + line if line.startswith(b".") else line for line in lines)
        await self._stream.send_all(b"".join(line + b"\r\n" for line in stuffed) + b".\r\n")
        self._stream.farewell = farewell
        await self._read_reply()

    async def command(self, line: str) -> Reply:
        await self._stream.send_all(line.encode("ascii") + b"\r\n")
        return await self._read_reply()

    async def _read_reply(self) -> Reply:
        text = []
        while True:
            line = await self._read_line()
            text.append(line[4:])
            if line[3:4] != "-":
                break
        reply = Reply(int(line[:3]), "\n".join(text))
        if reply.code >= 400:
            raise RefusedError(reply)
        return reply

    async def _read_line(self) -> str:
        while b"\r\n" not in self._received:
            data = await self._stream.receive_some()
            if not data:
                raise RefusedError("the server has ended the connection")
            self._received += data
        line, _, self._received = self._received.partition(b"\r\n")
        return line.decode("utf-8", "replace")


async def send(
    open_stream: Open, host: str, port: int, sender: str, recipients: list[str], message: bytes
) -> None:
    async with await open_stream(host, port) as stream:
        client = Client(stream)
        await client.greet("localhost")
        await client.send_message(sender, recipients, message)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--thread", action="store_true", help="without an event loop")
    for name in ("host", "sender", "recipient"):
        parser.add_argument(name)
    args = parser.parse_args()
    arguments = args.host, SUBMISSIONS_PORT, args.sender, [args.recipient], sys.stdin.buffer.read()
    if args.thread:
        ringtls.blocking.call(send, ringtls.blocking.open_tls_over_tcp_stream, *arguments)
    else:
        open_stream: Open = ringtls.open_tls_over_tcp_stream
        trio.run(send, open_stream, *arguments)


if __name__ == "__main__":
    main()
