"""Who a client is, by its certificate: as the log and ``--client-allow`` have it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["common_name_of", "identity_of"]

#: RFC 4514, section 3.
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}

#: What has a backslash before it there.
_SPECIAL = re.compile(r'["+,;<>\\]|\A[ #]| \Z')

_BEGINS_SUBJECT = re.compile(r"[\w. -]+=")


def identity_of(certificate: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The subject of a client's certificate, as RFC 4514 writes it but in order; and its names.

    A name that looks like a subject is left out: it would pass for one.

    Args:
      certificate: as ssl.SSLSocket.getpeercert has it.
    """
    subject = certificate.get("subject", ())
    names = [value for part in subject for kind, value in part if kind == "commonName"]
    names += [value for _, value in certificate.get("subjectAltName", ())]
    identity = ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_in_subject(value)}" for kind, value in part)
        for part in subject
    )
    return identity, [name for name in names if not _BEGINS_SUBJECT.match(str(name))]


def _in_subject(value: str) -> str:
    """As it is written there (RFC 4514, section 2.4)."""
    return _SPECIAL.sub(r"\\\g<0>", value).replace("\0", "\\00")


def common_name_of(certificate: Mapping[str, Any]) -> str:
    """The first that the subject has, or ""."""
    subject = (pair for part in certificate.get("subject", ()) for pair in part)
    return next((value for kind, value in subject if kind == "commonName"), "")
