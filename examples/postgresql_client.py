"""A PostgreSQL client: TLS begun on a plain connection, SCRAM-SHA-256 (RFC 7677), simple queries.

However the connection is left, the server hears Terminate, and so logs no lost connection.

    PGPASSWORD=... python examples/postgresql_client.py HOST USER DATABASE QUERY

The protocol: https://www.postgresql.org/docs/current/protocol.html
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import os
import secrets
import ssl
import struct

import trio

import ringtls

PORT = 5432
SSL_REQUEST = struct.pack("!II", 8, 80877103)
PROTOCOL_VERSION = 3 << 16
TERMINATE = b"X\0\0\0\4"

#: What the server wants after "R", and what its mechanism is called.
AUTHENTICATED, SASL, SASL_CONTINUE, SASL_FINAL = 0, 10, 11, 12
MECHANISM = b"SCRAM-SHA-256"

Row = tuple[str | None, ...]


class RefusedError(Exception):
    """The server answered with an error, or with what can't be trusted."""


class Scram:
    """The client's side of one authentication: RFC 5802, section 3, without channel binding."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._nonce = secrets.token_urlsafe(18)
        self.first = f"n=,r={self._nonce}"  # PostgreSQL knows the user already
        self._server_signature = b""

    def answer(self, challenge: str) -> str:
        fields = dict(part.split("=", 1) for part in challenge.split(","))
        if not fields["r"].startswith(self._nonce):
            raise RefusedError("the server has not heard us")
        salt, rounds = base64.b64decode(fields["s"]), int(fields["i"])
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, rounds)
        last = f"c=biws,r={fields['r']}"  # "n,," in base 64
        signed = f"{self.first},{challenge},{last}".encode()
        client_key = _hmac(salted, b"Client Key")
        signature = _hmac(hashlib.sha256(client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = _hmac(_hmac(salted, b"Server Key"), signed)
        return f"{last},p={base64.b64encode(proof).decode()}"

    def check(self, verdict: str) -> None:
        """The server must know the password, too."""
        expected = "v=" + base64.b64encode(self._server_signature).decode()
        if not self._server_signature or not hmac.compare_digest(verdict, expected):
            raise RefusedError("the server does not know the password")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


class Client:
    """One connection."""

    def __init__(self, stream: ringtls.TlsStream) -> None:
        self._stream = stream
        self._received = bytearray()

    async def log_in(self, user: str, database: str, password: str) -> None:
        fields = "".join(f"{field}\0" for field in ("user", user, "database", database, ""))
        startup = struct.pack("!I", PROTOCOL_VERSION) + fields.encode()
        await self._stream.send_all(struct.pack("!I", len(startup) + 4) + startup)
        self._stream.farewell = TERMINATE
        scram, is_checked = Scram(password), False
        while True:
            kind, body = await self._receive()
            if kind == b"E":
                raise _refusal(body)
            if kind == b"Z":
                return
            if kind != b"R":
                continue
            wanted, data = struct.unpack("!I", body[:4])[0], body[4:]
            if wanted == SASL and MECHANISM in data.split(b"\0"):
                first = b"n,," + scram.first.encode()
                await self._send(b"p", MECHANISM + b"\0" + struct.pack("!I", len(first)) + first)
            elif wanted == SASL_CONTINUE:
                await self._send(b"p", scram.answer(data.decode()).encode())
            elif wanted == SASL_FINAL:
                scram.check(data.decode())
                is_checked = True
            elif wanted != AUTHENTICATED or not is_checked:
                raise RefusedError("the server does not ask for the password by SCRAM-SHA-256")

    async def query(self, text: str) -> list[Row]:
        await self._send(b"Q", text.encode() + b"\0")
        rows: list[Row] = []
        refusal = None
        while True:
            kind, body = await self._receive()
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"E":
                refusal = _refusal(body)
            elif kind == b"Z":
                if refusal is not None:
                    raise refusal
                return rows

    async def _send(self, kind: bytes, body: bytes) -> None:
        await self._stream.send_all(kind + struct.pack("!I", len(body) + 4) + body)

    async def _receive(self) -> tuple[bytes, bytes]:
        """The kind of the next message, and what it says."""
        kind, length = struct.unpack("!cI", await self._receive_exactly(5))
        return kind, await self._receive_exactly(length - 4)

    async def _receive_exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            data = await self._stream.receive_some()
            if not data:
                raise RefusedError("the server has ended the connection")
            self._received += data
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken


def _refusal(body: bytes) -> RefusedError:
    fields = body.decode("utf-8", "replace").split("\0")
    return RefusedError(next(field[1:] for field in fields if field.startswith("M")))


def _row(body: bytes) -> Row:
    values: list[str | None] = []
    at = 2
    while at < len(body):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if length < 0 else body[at : at + length].decode())
        at += max(length, 0)
    return tuple(values)


async def connect(host: str, port: int, context: ssl.SSLContext) -> ringtls.TlsStream:
    """A connection that is ready for ``Client``."""
    below = await ringtls.open_tcp_stream(host, port)
    try:
        await below.send_all(SSL_REQUEST)
        if await below.receive_some(1) != b"S":  # all that may come in plain text
            raise RefusedError("the server does not speak TLS")
        return ringtls.TlsStream(below, context, server_hostname=host)
    except BaseException:
        await below.aclose()
        raise


async def main(host: str, user: str, database: str, query: str, password: str) -> None:
    async with await connect(host, PORT, ssl.create_default_context()) as stream:
        client = Client(stream)
        await client.log_in(user, database, password)
        for row in await client.query(query):
            print(*row, sep="\t")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("host", "user", "database", "query"):
        parser.add_argument(name)
    args = parser.parse_args()
    if "PGPASSWORD" not in os.environ:
        parser.error("the environment has no PGPASSWORD")
    trio.run(main, args.host, args.user, args.database, args.query, os.environ["PGPASSWORD"])
