"""The header of the PROXY protocol, as a function of bytes."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

import pytest

from ringtls._cli.proxy.header import (
    MOST,
    BadHeaderError,
    Endpoint,
    Endpoints,
    Tls,
    Version,
    crc32c,
    format_header,
    parse,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def endpoints(source: str, destination: str) -> Endpoints:
    return Endpoint(ip_address(source), 56324), Endpoint(ip_address(destination), 443)


IPV4 = endpoints("192.168.0.1", "192.168.0.11")
IPV6 = endpoints("2001:db8::1", "2001:db8::2")
IPV4_BLOCK = bytes((192, 168, 0, 1, 192, 168, 0, 11)) + struct.pack("!HH", 56324, 443)
IPV6_BLOCK = b"".join(each.address.packed for each in IPV6) + struct.pack("!HH", 56324, 443)


def v2(command: int, kind: int, rest: bytes = b"", length: int | None = None) -> bytes:
    size = len(rest) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, kind, size) + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(rest: bytes) -> bytes:
    header = v2(0x21, 0x11, IPV4_BLOCK + rest + tlv(0x03, bytes(4)))
    return header[:-4] + crc32c(header).to_bytes(4, "big")


#: Headers, and what they say.
GOOD: dict[str, tuple[bytes, Endpoints | None]] = {
    "TCP4": (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", IPV4),
    "TCP6": (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", IPV6),
    "UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "UNKNOWN, the longest": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None),
    "LOCAL": (v2(0x20, 0x00), None),
    "LOCAL with addresses": (v2(0x20, 0x11, IPV4_BLOCK), None),
    "LOCAL with anything": (v2(0x20, 0x00, b"anything"), None),
    "LOCAL of an unknown family": (v2(0x20, 0xF1), None),
    "LOCAL of an unknown protocol": (v2(0x20, 0x1F, b"anything"), None),
    "UNSPEC": (v2(0x21, 0x00, b"anything"), None),
    "IPv4": (v2(0x21, 0x11, IPV4_BLOCK), IPV4),
    "IPv6": (v2(0x21, 0x21, IPV6_BLOCK), IPV6),
    "UDP": (v2(0x21, 0x12, IPV4_BLOCK), None),
    "a local socket": (v2(0x21, 0x31, bytes(216)), None),
    "TLVs": (v2(0x21, 0x11, IPV4_BLOCK + tlv(0x04, b"") + tlv(0xEA, b"vpce-1")), IPV4),
    "checksum": (with_checksum(tlv(0x05, b"unique")), IPV4),
    "the longest": (v2(0x21, 0x11, IPV4_BLOCK + tlv(4, bytes(MOST - 16 - 12 - 3))), IPV4),
}

BAD = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lower case": b"proxy TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
    "a blank line first": b"\r\nPROXY UNKNOWN\r\n",
    "no end": b"PROXY UNKNOWN " + b"x" * 93,
    "LF alone": b"PROXY UNKNOWN\n",
    "CR alone": b"PROXY UNKNOWN\rx",
    "CR within": b"PROXY UNKNOWN a\rb\r\n",
    "no family": b"PROXY 192.168.0.1 192.168.0.11 56324 443\r\n",
    "UDP4": b"PROXY UDP4 192.168.0.1 192.168.0.11 56324 443\r\n",
    "two spaces": b"PROXY TCP4 192.168.0.1  192.168.0.11 56324 443\r\n",
    "a space at the end": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 \r\n",
    "a port too few": b"PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
    "a port too large": b"PROXY TCP4 192.168.0.1 192.168.0.11 65536 443\r\n",
    "a port with a zero": b"PROXY TCP4 192.168.0.1 192.168.0.11 056 443\r\n",
    "a negative port": b"PROXY TCP4 192.168.0.1 192.168.0.11 -1 443\r\n",
    "an address with a zero": b"PROXY TCP4 192.168.0.01 192.168.0.11 56324 443\r\n",
    "an address out of range": b"PROXY TCP4 192.168.0.256 192.168.0.11 56324 443\r\n",
    "IPv6 in TCP4": b"PROXY TCP4 ::1 192.168.0.11 56324 443\r\n",
    "IPv4 in TCP6": b"PROXY TCP6 192.168.0.1 ::1 56324 443\r\n",
    "a zone": b"PROXY TCP6 fe80::1%1 ::1 56324 443\r\n",
    "a name": b"PROXY TCP4 localhost 192.168.0.11 56324 443\r\n",
    "version 1 in binary": v2(0x11, 0x11, IPV4_BLOCK),
    "version 3": v2(0x31, 0x11, IPV4_BLOCK),
    "an unknown command": v2(0x22, 0x11, IPV4_BLOCK),
    "an unknown command, seen early": SIGNATURE + b"\x22",
    "an unknown family": v2(0x21, 0x41, IPV4_BLOCK),
    "an unknown protocol": v2(0x21, 0x13, IPV4_BLOCK),
    "shorter than its addresses": v2(0x21, 0x11, IPV4_BLOCK[:-1]),
    "IPv6 of the length of IPv4": v2(0x21, 0x21, IPV4_BLOCK),
    "a local socket without paths": v2(0x21, 0x31, bytes(215)),
    "too long, seen early": v2(0x21, 0x11, length=MOST - 15),
    "the largest length": v2(0x20, 0x00, length=0xFFFF),
    "half a TLV": v2(0x21, 0x11, IPV4_BLOCK + b"\x04\x00"),
    "a TLV that is longer": v2(0x21, 0x11, IPV4_BLOCK + b"\x04\x00\x02x"),
    "a wrong checksum": with_checksum(b"")[:-1] + b"\0",
    "a changed header": with_checksum(b"").replace(IPV4_BLOCK[:4], b"\x0a\0\0\x01"),
    "a checksum of no length": v2(0x21, 0x11, IPV4_BLOCK + tlv(0x03, b"")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_header_is_whole_or_there_is_none(name: str) -> None:
    data, said = GOOD[name]
    for size in range(len(data)):
        assert parse(data[:size]) is None, size
    for after in (b"", b"\x16\x03\x01", data):  # bytes of TLS are no part of it
        header = parse(data + after)
        assert header is not None
        assert (header.size, header.endpoints) == (len(data), said)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_header_is_refused(name: str) -> None:
    with pytest.raises(BadHeaderError):
        parse(BAD[name])


def test_garbage_is_refused_or_waits_for_no_more_than_the_limit() -> None:
    rng = random.Random(1)
    headers = [data for data, _ in GOOD.values()]
    refused = 0
    for _ in range(20_000):
        data = bytearray(rng.choice(headers) + rng.randbytes(8))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            header = parse(bytes(data) + bytes(MOST))
        except BadHeaderError:
            refused += 1
        else:
            assert header is not None
            assert header.size <= MOST
    assert refused > 1000


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("said", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_what_is_sent_is_what_comes(version: Version, said: Endpoints) -> None:
    header = parse(format_header(version, said))
    assert header is not None
    assert header.endpoints == said


@pytest.mark.parametrize("version", Version)
@pytest.mark.parametrize("told", [None, (IPV4[0], IPV6[1])], ids=["none", "of two families"])
def test_no_addresses_are_told_as_such(version: Version, told: Endpoints | None) -> None:
    data = format_header(version, told)
    header = parse(data)
    assert header is not None
    assert header.endpoints is None
    assert header.size == len(data)


def test_the_lines_of_version_1() -> None:
    assert format_header(Version.V1, IPV4) == GOOD["TCP4"][0]
    assert format_header(Version.V1, IPV6) == GOOD["TCP6"][0]
    assert format_header(Version.V1, None) == b"PROXY UNKNOWN\r\n"


def values(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        kind, size = struct.unpack_from("!BH", data)
        found[kind], data = data[3 : 3 + size], data[3 + size :]
    return found


@pytest.mark.parametrize(
    ("common_name", "resumed", "client", "unverified"),
    [(None, False, 1, 1), (None, True, 1, 1), ("me", False, 7, 0), ("me", True, 5, 0)],
)
def test_what_version_2_tells_of_tls(
    common_name: str | None, resumed: bool, client: int, unverified: int
) -> None:
    tls = Tls("TLSv1.3", "TLS_AES_128_GCM_SHA256", "h2", "a.example", common_name, resumed)
    data = format_header(Version.V2, IPV4, tls)
    found = values(data[16 + 12 :])
    assert (found[0x01], found[0x02]) == (b"h2", b"a.example")
    assert struct.unpack_from("!BI", found[0x20]) == (client, unverified)
    details = {0x21: b"TLSv1.3", 0x23: b"TLS_AES_128_GCM_SHA256"}
    if common_name is not None:
        details[0x22] = b"me"
    assert values(found[0x20][5:]) == details
    header = parse(data)
    assert header is not None
    assert header.size == len(data)


def test_the_address_of_a_socket() -> None:
    assert str(Endpoint.of(("fe80::1%lo", 80, 0, 1))) == "[fe80::1]:80"
    assert str(Endpoint.of(("127.0.0.1", 80))) == "127.0.0.1:80"
    assert Endpoint.of("/run/socket") is None
