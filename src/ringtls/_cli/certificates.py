"""Development certificates: a certificate authority of one's own, and what it signed."""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "Certificate",
    "client_context",
    "make_certificate",
    "read_cached_certificate",
    "server_context",
]

LIFETIME = datetime.timedelta(days=90)
RENEW_BEFORE = datetime.timedelta(days=7)

#: The files of a Certificate.
_NAMES = ("ca.pem", "certificate.pem", "key.pem")

#: For servers, and for clients that are asked for a certificate.
_PURPOSES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@dataclass(frozen=True)
class Certificate:
    """Paths of three PEM files."""

    ca: Path
    certificate: Path
    key: Path


def cache_directory() -> Path:
    """Where this user's programs keep what they can make anew (XDG base directories).

    Raises:
      OSError: the user has no home.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "ringtls"
    try:
        return Path.home() / ".cache" / "ringtls"
    except RuntimeError as error:
        raise OSError("this user has no home directory") from error


def read_cached_certificate() -> tuple[Path, bytes, bytes]:
    """The user's development certificate for this machine, made or renewed where needed.

    Programs that start at the same time take turns, so all of them have the same one.

    Returns:
      The path of its authority's certificate; its own content, and that of its key.

    Raises:
      OSError: there is no cache directory, or it can't be written.
    """
    directory = cache_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        files = Certificate(*(directory / name for name in _NAMES))
        if not _is_good(files):
            files = make_certificate(directory)
        return files.ca, files.certificate.read_bytes(), files.key.read_bytes()


def make_certificate(directory: Path, names: Sequence[str] = ()) -> Certificate:
    """Write a new authority and a certificate into a directory.

    The authority's key is not kept, so it can't be used to sign anything else.

    Args:
      names: in the DNS; by default those of localhost and this host, with their addresses.
    """
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = _name(f"ringtls development CA on {socket.gethostname()}")
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [x509.DNSName(name) for name in names] or _subject_names()
    certificate = (
        _builder(_name("ringtls development"), ca_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_PURPOSES), critical=False)
        .add_extension(x509.SubjectAlternativeName(subject), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False
        )
        .sign(ca_key, hashes.SHA256())
    )
    made = Certificate(*(directory / name for name in _NAMES))
    _write(made.ca, ca.public_bytes(serialization.Encoding.PEM))
    _write(made.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    _write(made.key, _key_pem(key))
    return made


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """A server's context for the files that hold its certificate and key.

    Raises:
      OSError, ssl.SSLError: a file can't be read, or the key is not the certificate's.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def client_context(ca: Path) -> ssl.SSLContext:
    """A client's context that trusts one CA, and does not hide truncation.

    Raises:
      OSError, ssl.SSLError: the file can't be read, or is no certificate.
    """
    context = ssl.create_default_context(cafile=ca)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Debian 12's Python sets it
    return context


def _subject_names() -> Sequence[x509.GeneralName]:
    return [
        x509.DNSName("localhost"),
        x509.DNSName(socket.gethostname()),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _is_good(files: Certificate) -> bool:
    """False if they are to be made anew. That nobody can read them now is no reason for that: those
    who trust the authority would have to trust another.

    Raises:
      OSError: they can't be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        server_context(files.certificate, files.key)
        client_context(files.ca)
    except (FileNotFoundError, ssl.SSLError, ValueError, x509.InvalidVersion):
        return False
    return certificate.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + RENEW_BEFORE


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step, readable by its owner alone."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)
