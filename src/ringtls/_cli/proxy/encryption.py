"""TLS towards the backends: their certificates are verified, always."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

from ringtls import SocketStream, TlsStream

from ..server import StartError
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

    Raises:
      StartError: this can't work.
    """

    def __init__(self, ca: Path | None, name: str | None, backends: Sequence[Backend]) -> None:
        self._ca = ca
        self._name = name
        if name is None and any(isinstance(backend.place, Local) for backend in backends):
            raise StartError("a backend at unix:PATH has no name to verify: give --backend-name")
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        self._context(())

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
        context = self._contexts.get(alpn)
        if context is None:
            context = self._contexts[alpn] = self._new_context()
            if alpn:
                context.set_alpn_protocols(list(alpn))
        return context

    def _new_context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._ca)
        except ssl.SSLError as error:
            raise StartError(f"no certificate in {self._ca}: {error}") from error
        except OSError as error:
            raise StartError(f"can't read {self._ca}: {error.strerror}") from error
