"""The certificates of a server and of its clients: loaded at the start, and again at SIGHUP.

Rules:

1. Reading files may take for ever (a FIFO, a disk that hangs), so reading and using them are two
   steps. ``read`` may block, and is called in a thread or a process of its own. ``use`` takes the
   bytes and does no I/O; the files that OpenSSL insists on are in memory (memfd_create(2)).
2. ``use`` changes everything or nothing. So a bad file leaves the server as it was.
3. Connections begin with one context, which stays, and which an SNI callback exchanges for that
   of the certificate. The keys of session tickets are those of the first: so tickets are good
   after a reload, and for all workers, which have it from before the fork.
4. Where clients have certificates, resuming a session would pass over what the new files say
   about them. So there the first context is new after a reload, and with it the keys.
5. The certificate is that of the name the client asks for, or of the widest wildcard for it, or
   the first (``names``). With one certificate there is nothing to choose, and nobody reads names.
"""

from __future__ import annotations

import enum
import os
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from .errors import StartError

__all__ = [
    "Bundle",
    "ClientCertificates",
    "Credentials",
    "Files",
    "Pair",
    "by_name",
    "file_of",
    "names_in",
]

T = TypeVar("T")

#: In directories that ``--cert-dir`` finds: the names of certbot's files, and of Kubernetes'.
_PAIRS_IN_DIRECTORIES = (("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key"))

_SUFFIXES = (".pem", ".crt")


class ClientCertificates(enum.Enum):
    """Whether clients are asked for a certificate, and must have one."""

    NONE = ssl.CERT_NONE
    OPTIONAL = ssl.CERT_OPTIONAL
    REQUIRED = ssl.CERT_REQUIRED


@dataclass(frozen=True)
class Pair:
    """A certificate chain with its key, both in PEM form, and where they are from."""

    certificate: bytes
    key: bytes
    certificate_name: str
    key_name: str


@dataclass(frozen=True)
class Bundle:
    """What the files hold.

    Attributes:
      others: what those of the command hold (Service.files).
      development_ca: the file of the development certificate's authority, if that is used.
    """

    pairs: tuple[Pair, ...]
    client_ca: bytes | None = None
    client_crl: bytes | None = None
    development_ca: Path | None = None
    others: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Files:
    """Where certificates and keys are.

    Attributes:
      pairs: of a certificate and its key, which may be in the same file (None).
      directory: another source of pairs.
      are_needed: with none given, there is the development certificate.
      others: which the command wants (Service.files).
    """

    pairs: Sequence[tuple[Path, Path | None]] = ()
    directory: Path | None = None
    client_ca: Path | None = None
    client_crl: Path | None = None
    are_needed: bool = True
    others: Sequence[Path] = ()

    def read(self) -> Bundle:
        """Read them all. May block (rule 1).

        Raises:
          StartError: a file can't be read, or none is in the directory, or the development
            certificate can't be read or made.
        """
        paths = [*self.pairs, *(() if self.directory is None else _pairs_in(self.directory))]
        client_ca, client_crl = (
            None if path is None else _read(path) for path in (self.client_ca, self.client_crl)
        )
        others = tuple(map(_read, self.others))
        if self.directory is not None and not paths:
            raise StartError("there is no certificate with its key in the directory of --cert-dir")
        if paths or not self.are_needed:
            pairs = tuple(_read_pair(certificate, key) for certificate, key in paths)
            return Bundle(pairs, client_ca, client_crl, others=others)
        from ..certificates import read_cached_certificate  # it imports much

        try:
            ca, certificate, key = read_cached_certificate()
        except OSError as error:
            raise StartError(
                f"there is no development certificate: {error}; give --certfile, or set "
                "XDG_CACHE_HOME to a directory that can be written"
            ) from error
        pair = Pair(certificate, key, "the development certificate", "its key")
        return Bundle((pair,), client_ca, client_crl, ca, others)


class Credentials:
    """What connections begin with.

    Args:
      alpn: protocols that are offered to clients, the preferred first.
      client_certificates: those who have one need a client CA in every bundle.
      refuse: for a name that a client asks for, or none, the alert that refuses it; None if it is
        served.
      load: see Service.load.

    Raises:
      StartError: they can't be used.

    Attributes:
      context: for connections that come. Those that have come keep what they have.
      asked_for: the names that clients asked for, by their connections.
      development_ca: see Bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        alpn: Sequence[str],
        client_certificates: ClientCertificates = ClientCertificates.NONE,
        refuse: Callable[[str], int | None] = lambda name: None,
        load: Callable[[Sequence[bytes]], Callable[[], object]] = lambda contents: lambda: None,
    ) -> None:
        self._alpn = alpn
        self._client_certificates = client_certificates
        self._refuse = refuse
        self._load_others = load
        self.asked_for: WeakKeyDictionary[ssl.SSLObject, str] = WeakKeyDictionary()
        self._certificates: _Certificates
        self.context: ssl.SSLContext
        self._is_first = True
        self.use(bundle)

    def use(self, bundle: Bundle) -> None:
        """Use these from now on.

        Raises:
          StartError: that is not possible; nothing has changed (rule 2).
        """
        context = self._first_context(bundle)
        use_others = self._load_others(bundle.others)
        self._certificates = self._load(bundle)
        self.context = context
        use_others()
        self.development_ca = bundle.development_ca
        self._is_first = False

    def _first_context(self, bundle: Bundle) -> ssl.SSLContext:
        """See rules 3 and 4."""
        if not self._is_first and self._client_certificates is ClientCertificates.NONE:
            return self.context
        context = self._new_context(bundle)
        context.sni_callback = self._choose
        return context

    def _choose(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> int | None:
        name = (name or "").lower().removesuffix(".")
        self.asked_for[connection] = name
        connection.context = self._certificates.choose(name)
        return self._refuse(name)

    def _load(self, bundle: Bundle) -> _Certificates:
        certificates = _Certificates()
        for pair in bundle.pairs:
            context = self._new_context(bundle)
            _load_pair(context, pair)
            certificates.default = certificates.default or context
            for name in _names_of(pair) if len(bundle.pairs) > 1 else ():
                certificates.by_name.setdefault(name, context)
        return certificates

    def _new_context(self, bundle: Bundle) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if self._alpn:
            context.set_alpn_protocols(list(self._alpn))
        if self._client_certificates is not ClientCertificates.NONE:
            _load_client_authorities(context, bundle)
        context.verify_mode = ssl.VerifyMode(self._client_certificates.value)
        return context


@dataclass
class _Certificates:
    """Contexts, by the names in their certificates (rule 5)."""

    default: ssl.SSLContext | None = None
    by_name: dict[str, ssl.SSLContext] = field(default_factory=dict)

    def choose(self, name: str) -> ssl.SSLContext:
        found = by_name(self.by_name, name) or self.default
        assert found is not None
        return found


def by_name(table: Mapping[str, T], name: str) -> T | None:
    """What a table has for a name, or for the wildcard in place of its first label."""
    return table.get(name) or table.get(f"*.{name.partition('.')[2]}")


# Files


def _pairs_in(directory: Path) -> Iterator[tuple[Path, Path | None]]:
    try:
        for path in sorted(directory.iterdir()):
            if path.is_dir():
                for certificate, key in _PAIRS_IN_DIRECTORIES:
                    if (path / certificate).exists():
                        yield path / certificate, path / key
            elif path.suffix in _SUFFIXES:
                key_path = path.with_suffix(".key")
                yield path, key_path if key_path.exists() else None
    except OSError as error:
        raise StartError(f"can't read {directory}: {error.strerror}") from error


def _read_pair(certificate: Path, key: Path | None) -> Pair:
    content = _read(certificate)
    if key is None:
        return Pair(content, content, str(certificate), str(certificate))
    return Pair(content, _read(key), str(certificate), str(key))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"can't read {path}: {error.strerror}") from error


# What they hold


def _load_pair(context: ssl.SSLContext, pair: Pair) -> None:
    def refuse_to_ask() -> str:
        raise StartError(f"the key in {pair.key_name} is encrypted; decrypt it first")

    try:
        with file_of(pair.certificate) as certificate, file_of(pair.key) as key:
            context.load_cert_chain(certificate, key, refuse_to_ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"the key in {pair.key_name} is not that of {pair.certificate_name}"
            raise StartError(text) from error
        files = dict.fromkeys((pair.certificate_name, pair.key_name))
        raise StartError(
            f"no certificate with its key in {' and '.join(files)}: {error}"
        ) from error


def _load_client_authorities(context: ssl.SSLContext, bundle: Bundle) -> None:
    assert bundle.client_ca is not None
    try:
        with file_of(bundle.client_ca) as path:
            context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise StartError(f"no certificate in the file of --client-ca: {error}") from error
    if bundle.client_crl is None:
        return
    known = context.cert_store_stats()["crl"]
    with file_of(bundle.client_crl) as path:
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as error:
            raise StartError(f"no CRL in the file of --client-crl: {error}") from error
    if context.cert_store_stats()["crl"] == known:
        raise StartError("no CRL in the file of --client-crl")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def names_in(bundle: Bundle) -> list[str]:
    """The names that the certificates are for, for people.

    Raises:
      StartError: they can't be read.
    """
    return sorted({name for pair in bundle.pairs for name in _names_of(pair)}) or ["any name"]


def _names_of(pair: Pair) -> list[str]:
    from .names import names_of  # it imports much

    try:
        return names_of(pair.certificate)
    except Exception as error:  # those of cryptography have nothing in common
        raise StartError(f"can't read the names in {pair.certificate_name}: {error}") from error


@contextmanager
def file_of(content: bytes) -> Iterator[str]:
    """The path of a file in memory."""
    descriptor = os.memfd_create("ringtls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        path = f"/proc/self/fd/{descriptor}"
        if not os.path.exists(path):
            raise StartError("/proc is not mounted here: certificates are loaded by way of it")
        yield path
    finally:
        os.close(descriptor)
