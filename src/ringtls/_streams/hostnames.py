"""The names of hosts, as DNS and certificates have them."""

from __future__ import annotations

import idna

__all__ = ["ascii_hostname", "reference_name"]


def ascii_hostname(host: str | bytes) -> str:
    """A hostname as DNS and certificates have it: as trio resolves it (IDNA 2008). ssl would take
    the name of IDNA 2003."""
    if isinstance(host, bytes):
        return host.decode("ascii")
    return host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")


def reference_name(host: str | bytes) -> str:
    """The name of a host that its certificate must have, given how it is reached.

    The dot at the end of an absolute domain name is not part of it (RFC 6066, section 3), nor is
    the zone of an IPv6 address, which is this machine's own name for a link (RFC 4007, section 11).
    """
    name = ascii_hostname(host).removesuffix(".")
    address, _, zone = name.partition("%")
    return address if zone and ":" in address else name
