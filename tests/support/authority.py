"""An authority for the certificates of clients."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ringtls._cli import certificates

__all__ = ["Authority", "pem_with_key"]


def pem_with_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """What one file may hold of both."""
    return certificate.public_bytes(serialization.Encoding.PEM) + certificates._key_pem(key)


@dataclass
class Authority:
    """See the module."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, directory: Path) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clients")])
        certificate = (
            certificates._builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(certificates._key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        self = cls(directory, key, certificate)
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return self

    @property
    def path(self) -> Path:
        return self.directory / "clients.pem"

    def sign(self, name: str) -> tuple[x509.Certificate, Path]:
        """A certificate, and the file with it and its key."""
        return self.sign_for(
            name, {NameOID.ORGANIZATION_NAME: "example", NameOID.COMMON_NAME: name}
        )

    def sign_for(
        self,
        file: str,
        subject: Mapping[x509.ObjectIdentifier, str],
        names: Sequence[x509.GeneralName] = (),
    ) -> tuple[x509.Certificate, Path]:
        """The same, with this subject and these alternative names."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(kind, value) for kind, value in subject.items()])
        builder = certificates._builder(name, self.certificate.subject, key.public_key())
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), not subject)
        signed = builder.add_extension(self._identifier(), critical=False).sign(
            self.key, hashes.SHA256()
        )
        path = self.directory / f"{file}.pem"
        path.write_bytes(pem_with_key(signed, key))
        return signed, path

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        """Without it Python 3.13 and newer refuse what it signs (ssl.VERIFY_X509_STRICT)."""
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())

    def revoke(self, *revoked: x509.Certificate) -> Path:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .add_extension(self._identifier(), critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
            .last_update(now - datetime.timedelta(hours=1))
            .next_update(now + datetime.timedelta(days=1))
        )
        for certificate in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(now - datetime.timedelta(hours=1))
                .build()
            )
        path = self.directory / "crl.pem"
        path.write_bytes(
            builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return path
