"""Records that a TLS 1.3 peer may send, and OpenSSL's API in Python can't: key updates.

From the traffic secret in a key log (RFC 8446, sections 4.6.3, 5.2 and 7).
"""

from __future__ import annotations

import hmac
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["ANSWER_SIZE", "ClientRecords", "client_records"]

#: Bytes of a KeyUpdate as a record.
ANSWER_SIZE = 5 + 5 + 1 + 16

_APPLICATION_DATA = 23
_HANDSHAKE = 22


def client_records(key_log: Path) -> ClientRecords:
    """What a client whose secrets are in the file sends after its handshake."""
    for line in key_log.read_text().splitlines():
        if line.startswith("CLIENT_TRAFFIC_SECRET_0 "):
            return ClientRecords(bytes.fromhex(line.split()[2]))
    raise AssertionError("the handshake was not TLS 1.3's, or is not complete")


class ClientRecords:
    """Encrypts one record after another; AES-256-GCM with SHA-384."""

    def __init__(self, secret: bytes) -> None:
        self._use(secret)

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher = AESGCM(_expand(secret, b"key", 32))
        self._iv = int.from_bytes(_expand(secret, b"iv", 12), "big")
        self._sequence_number = 0

    def data(self, data: bytes) -> bytes:
        return self._record(_APPLICATION_DATA, data)

    def key_update(self) -> bytes:
        """Asks for one of the peer's in turn."""
        record = self._record(_HANDSHAKE, b"\x18\x00\x00\x01\x01")
        self._use(_expand(self._secret, b"traffic upd", 48))
        return record

    def key_updates(self, count: int) -> bytes:
        return b"".join(self.key_update() for _ in range(count))

    def _record(self, kind: int, content: bytes) -> bytes:
        head = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        nonce = (self._iv ^ self._sequence_number).to_bytes(12, "big")
        self._sequence_number += 1
        return head + self._cipher.encrypt(nonce, content + bytes([kind]), head)


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of at most one block."""
    return hmac.digest(secret, _info(label, size), "sha384")[:size]


@cache
def _info(label: bytes, size: int) -> bytes:
    label = b"tls13 " + label
    return size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\x00\x01"
