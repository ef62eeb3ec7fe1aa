"""TLS towards the backends: their certificates are verified, always."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from ringtls import SocketStream, TlsStream

from ..server import StartError
from ..server.credentials import file_of
from ..server.listening import Local
from .backends import Backend, Place

__all__ = ["Encryption"]


class Encryption:
    """How connections to backends are encrypted.

    Args:
      ca: the file of the authorities that sign their certificates; None: those that this machine
        trusts.
      name: which their certificates must have; None: the host of each.
      backends: all of them.

    Attributes:
      files: see Service.

    Raises:
      StartError: this can't work.
    """

    def __init__(self, ca: Path | None, name: str | None, backends: Sequence[Backend]) -> None:
        self.files = () if ca is None else (ca,)
        self._name = name
        if name is None and any(isinstance(backend.place, Local) for backend in backends):
            raise StartError("a backend at unix:PATH has no name to verify: give --backend-name")
        #: What ``files`` hold, and the contexts with that by the protocols that they offer. One
        #: thing, because another thread exchanges it.
        self._trusted: tuple[Sequence[bytes], dict[tuple[str, ...], ssl.SSLContext]] = (), {}

    def load(self, contents: Sequence[bytes]) -> Callable[[], object]:
        """See Service."""
        context = _new_context(contents)

        def use() -> None:
            self._trusted = contents, {(): context}

        return use

    def wrap(self, transport: SocketStream, place: Place, alpn: tuple[str, ...]) -> TlsStream:
        """A stream whose handshake is to be made.

        Args:
          alpn: protocols to offer.
        """
        name = self._name
        if name is None:
            assert not isinstance(place, Local)
            name = place.host
        return TlsStream(transport, self._context(alpn), server_hostname=name)

    def _context(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """There are as many as there are protocols that clients agree to with us."""
        contents, contexts = self._trusted
        context = contexts.get(alpn)
        if context is None:
            context = contexts[alpn] = _new_context(contents)
            context.set_alpn_protocols(list(alpn))
        return context


def _new_context(ca: Sequence[bytes]) -> ssl.SSLContext:
    if not ca:
        return ssl.create_default_context()
    with file_of(ca[0]) as path:
        try:
            return ssl.create_default_context(cafile=path)
        except ssl.SSLError as error:
            raise StartError(f"no certificate in the file of --backend-ca: {error}") from error
