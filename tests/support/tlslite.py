"""A TLS server that can be told to send any message at any time (tlslite-ng), in a thread."""

from __future__ import annotations

import socket
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tlslite import recordlayer
from tlslite.api import HandshakeSettings, TLSConnection, X509CertChain, parsePEMKey
from tlslite.constants import ContentType
from tlslite.errors import TLSAbruptCloseError
from tlslite.messages import ApplicationData, HelloRequest

from ..conftest import Contexts

TLS_1_2 = (3, 3)
TLS_1_3 = (3, 4)

#: The first part of a NewSessionTicket (RFC 8446, section 4.6.1) of 100 bytes.
HALF_A_TICKET = bytes([4, 0, 0, 100]) + bytes(36)


class Cipher:
    """Encrypts for tlslite, whose own ciphers are in Python, and take a second for 150 KB."""

    isBlockCipher = False  # noqa: N815  tlslite asks for these
    isAEAD = True  # noqa: N815
    nonceLength = 12  # noqa: N815
    tagLength = 16  # noqa: N815
    name = "aes256gcm"

    def __init__(self, key: bytearray, implementations: object) -> None:
        self._cipher = AESGCM(key)

    def seal(self, nonce: bytearray, plaintext: bytearray, data: bytearray) -> bytearray:
        return bytearray(self._cipher.encrypt(nonce, plaintext, data))

    def open(self, nonce: bytearray, ciphertext: bytearray, data: bytearray) -> bytearray:
        return bytearray(self._cipher.decrypt(nonce, ciphertext, data))


recordlayer.createAESGCM = Cipher


class Raw:
    """One record of a handshake message's bytes."""

    contentType = ContentType.handshake  # noqa: N815  tlslite asks for it

    def __init__(self, data: bytes) -> None:
        self._data = data

    def write(self) -> bytearray:
        return bytearray(self._data)


class ScriptedServer:
    """The server's side of a connection, after ``handshake``."""

    def __init__(self, sock: socket.socket, contexts: Contexts, version: tuple[int, int]) -> None:
        sock.settimeout(20)
        self.sock = sock
        self._connection = TLSConnection(sock)
        self._connection.closeSocket = False
        self._chain = X509CertChain()
        self._chain.parsePemList(contexts.certificate.read_text())
        self._key = parsePEMKey(contexts.key.read_text(), private=True)
        self._settings = HandshakeSettings()
        self._settings.cipherNames = [Cipher.name]
        self._settings.minVersion = self._settings.maxVersion = version

    def handshake(self) -> None:
        self._connection.handshakeServer(
            certChain=self._chain, privateKey=self._key, settings=self._settings
        )

    def send(self, data: bytes) -> None:
        self._send_message(ApplicationData().create(bytearray(data)))

    def ask_for_renegotiation(self) -> None:
        self._send_message(HelloRequest().create())

    def send_half_a_ticket(self) -> None:
        self._exhaust(self._connection._recordLayer.sendRecord(Raw(HALF_A_TICKET)))

    def read_to_end(self) -> tuple[int, list[str]]:
        """How many bytes of data came, and what came after the last of them."""
        count = 0
        rest: list[str] = []
        while True:
            try:
                header, parser = self._record()
            except TLSAbruptCloseError:
                return count, [*rest, "FIN"]
            except ConnectionError:
                return count, [*rest, "RST"]
            if header.type == ContentType.application_data:
                count += len(parser.bytes)
            elif header.type == ContentType.alert:
                rest.append(f"alert {parser.bytes[1]}")

    def _record(self) -> Any:
        for result in self._connection._recordLayer.recvRecord():
            if result not in (0, 1):
                return result
        raise AssertionError("recvRecord ended without a record")

    def _send_message(self, message: Any) -> None:
        self._exhaust(self._connection._sendMsg(message))

    @staticmethod
    def _exhaust(steps: Any) -> None:
        for _ in steps:
            pass
