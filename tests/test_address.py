"""Addresses as connect(2) takes them."""

from __future__ import annotations

import socket
import sys
from typing import cast

import pytest

from ringtls._engine.address import Address, packed

INET, INET6, UNIX = (
    int(family).to_bytes(2, sys.byteorder)
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
)


@pytest.mark.parametrize(
    ("family", "address", "expected"),
    [
        (socket.AF_INET, ("10.0.0.1", 443), INET + b"\x01\xbb\x0a\0\0\1" + bytes(8)),
        (
            socket.AF_INET6,
            ("fe80::2", 443, 5, 7),
            INET6
            + b"\x01\xbb\0\0\0\5\xfe\x80"
            + bytes(13)
            + b"\2"
            + (7).to_bytes(4, sys.byteorder),
        ),
        (socket.AF_INET6, ("::", 1), INET6 + b"\0\1" + bytes(24)),
        (socket.AF_UNIX, "/a/path", UNIX + b"/a/path"),
        (socket.AF_UNIX, b"\0name", UNIX + b"\0name"),
        (socket.AF_UNIX, "x" * 107, UNIX + b"x" * 107),
    ],
)
def test_packed(family: int, address: Address, expected: bytes) -> None:
    assert packed(family, address) == expected


def test_a_zone_is_a_number() -> None:
    """What getaddrinfo(3) makes of one is what connect(2) takes."""
    [*_, found] = socket.getaddrinfo("fe80::2%lo", 443, socket.AF_INET6)
    address = cast("tuple[str, int, int, int]", found[4])
    zone = packed(socket.AF_INET6, address)[-4:]
    assert zone == socket.if_nametoindex("lo").to_bytes(4, sys.byteorder)


@pytest.mark.parametrize(
    ("family", "address", "error", "text"),
    [
        (socket.AF_INET, ("localhost", 80), ValueError, "'localhost' is not a numeric address"),
        (socket.AF_INET, ("::1", 80), ValueError, "'::1' is not a numeric address"),
        (socket.AF_INET, ("127.0.0.1", 65536), ValueError, "out of range"),
        (socket.AF_INET6, ("::1", 80, 0, -1), ValueError, "out of range"),
        (socket.AF_INET, "127.0.0.1", TypeError, r"expected \(host, port\)"),
        (socket.AF_UNIX, ("127.0.0.1", 80), TypeError, "expected a path"),
        (socket.AF_UNIX, "x" * 108, OSError, "File name too long"),
        (socket.AF_NETLINK, ("::1", 80), OSError, "family 16"),
    ],
)
def test_what_is_no_address(
    family: int, address: Address, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        packed(family, address)
