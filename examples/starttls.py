"""STARTTLS (RFC 3207): what a mail server offers once TLS has begun on a plain connection.

python examples/starttls.py HOST [PORT]
"""

from __future__ import annotations

import argparse
import ssl

import trio

import ringtls

SUBMISSION_PORT = 587


class RefusedError(Exception):
    """The server answered with an error, or with what can't be trusted."""


class Dialogue:
    """Commands and replies, over a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.unread = b""

    async def ask(self, command: str) -> list[str]:
        await self._stream.send_all(f"{command}\r\n".encode())
        return await self.listen()

    async def listen(self) -> list[str]:
        """The lines of a reply (RFC 5321, section 4.2)."""
        lines = [await self._read_line()]
        while lines[-1][3:4] == "-":
            lines.append(await self._read_line())
        if lines[-1] >= "4":
            raise RefusedError(lines)
        return [line[4:] for line in lines]

    async def _read_line(self) -> str:
        while b"\r\n" not in self.unread:
            data = await self._stream.receive_some()
            if not data:
                raise RefusedError("the server has ended the connection")
            self.unread += data
        line, _, self.unread = self.unread.partition(b"\r\n")
        return line.decode("utf-8", "replace")


async def offers(host: str, port: int, context: ssl.SSLContext) -> list[str]:
    async with await ringtls.open_tcp_stream(host, port) as below:
        plain = Dialogue(below)
        await plain.listen()
        await plain.ask("EHLO localhost")
        await plain.ask("STARTTLS")
        if plain.unread:  # anybody may have put it there, and it would count as said over TLS
            raise RefusedError("something came after the reply to STARTTLS")
        async with ringtls.TlsStream(below, context, server_hostname=host) as stream:
            lines = await Dialogue(stream).ask("EHLO localhost")
            stream.farewell = b"QUIT\r\n"
            return lines


async def main(host: str, port: int) -> None:
    print(*await offers(host, port, ssl.create_default_context()), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", nargs="?", type=int, default=SUBMISSION_PORT)
    arguments = parser.parse_args()
    trio.run(main, arguments.host, arguments.port)
