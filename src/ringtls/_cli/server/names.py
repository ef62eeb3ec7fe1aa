"""The names that a certificate is for."""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

__all__ = ["names_of"]


def names_of(chain: bytes) -> list[str]:
    """Those of the first certificate, in lower case (RFC 6125: SubjectAltName, if it has that).

    Args:
      chain: in PEM form.

    Raises:
      Exception: it can't be read; cryptography's errors are of many kinds.
    """
    certificate = x509.load_pem_x509_certificates(chain)[0]
    try:
        extension = certificate.extensions.get_extension_for_oid(
            ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        )
        assert isinstance(extension.value, x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names = [str(attribute.value) for attribute in attributes]
    return [name.lower() for name in names]
