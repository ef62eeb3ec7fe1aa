"""The dates of certificates, at which clients look, and a server that starts does not."""

from __future__ import annotations

import datetime

from cryptography import x509

from .credentials import Bundle

__all__ = ["out_of_date"]


def out_of_date(bundle: Bundle) -> list[str]:
    """For people, a sentence about each certificate that clients refuse today.

    Args:
      bundle: one that can be used.
    """
    now = datetime.datetime.now(datetime.UTC)
    sentences = []
    for pair in bundle.pairs:
        certificate = x509.load_pem_x509_certificates(pair.certificate)[0]
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if last < now:
            refused = f"was valid until {last:%Y-%m-%d %H:%M} UTC: clients refuse it; renew it"
        elif now < first:
            refused = (
                f"is valid from {first:%Y-%m-%d %H:%M} UTC: clients refuse it until then; "
                "is this machine's clock right?"
            )
        else:
            continue
        sentences.append(f"the certificate in {pair.certificate_name} {refused}")
    return sentences
