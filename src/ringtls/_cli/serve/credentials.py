"""The server's certificate and its key: loaded at the start, and again at SIGHUP."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from ..certificates import cached_certificate, server_context
from .errors import StartError

__all__ = ["Credentials"]

logger = logging.getLogger("ringtls.serve")


class Credentials:
    """Those of the given files, or of a development certificate, made when needed.

    Raises:
      StartError: they can't be used.
      OSError: there is no place for the development certificate.

    Attributes:
      context: for connections that come. Those that have come keep the one they have.
      ca: the file of the development certificate's authority, if that is used.
    """

    def __init__(self, certificate: Path | None, key: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self.context, self.ca = self._load()

    def reload(self) -> bool:
        """Load the files again. False if they can't be used; then all stays as it was."""
        try:
            self.context, self.ca = self._load()
        except OSError as error:
            logger.error("SIGHUP: the certificate stays as it was: %s", error)
            return False
        logger.info("SIGHUP: the certificate was loaded anew")
        return True

    def _load(self) -> tuple[ssl.SSLContext, Path | None]:
        if self._certificate is None:
            if self._key is not None:
                raise StartError("--keyfile needs --certfile")
            development = cached_certificate()
            context, ca = server_context(development.certificate, development.key), development.ca
        else:
            context, ca = _given_context(self._certificate, self._key), None
        context.set_alpn_protocols(["http/1.1"])
        return context, ca


def _given_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    for path in filter(None, (certificate, key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise StartError(f"can't read {path}: {error.strerror}") from error
    try:
        return server_context(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(f"the key in {key} is not that of {certificate}") from error
        files = f"{certificate} and {key}" if key else certificate
        raise StartError(f"no certificate with its key in {files}: {error}") from error
