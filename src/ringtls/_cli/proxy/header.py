"""The header of the PROXY protocol: who a connection that comes through proxies is really from.

A function of bytes, without I/O. The source is proxy-protocol.txt of haproxy; the numbers in
parentheses are its sections.

Rules:

1. A header is used when it is whole. Until then ``parse`` returns None, and all it was given
   belongs to the header: that can be received, and nothing behind it has been looked at.
2. What can't become a header any more is refused at once, so that nobody waits for the rest of
   garbage. Both versions have a limit of bytes.
3. Nothing is guessed (5): what is not exactly of the form is refused, also where the meaning seems
   clear (a second space, a leading zero, a length that does not fit).
4. A header without addresses (LOCAL, UNKNOWN, UNSPEC), or with those of something that is no TLS
   connection (datagrams), is valid. The connection's own addresses then count. All but the length
   of LOCAL is thrown away, the family too (2.2).
"""

from __future__ import annotations

import enum
import ipaddress
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "MOST",
    "BadHeaderError",
    "Endpoint",
    "Endpoints",
    "Header",
    "Tls",
    "Version",
    "format_header",
    "parse",
]

#: Bytes that a header may have: of version 1 (2.1), and of any version. The specification lets
#: version 2 have 64 KiB; senders keep it below the size of a segment (2.2), nginx accepts as much.
MOST_V1 = 107
MOST = 4096

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
WORD = b"PROXY "

#: The addresses of version 1: as inet_ntop(3) writes them, which ipaddress reads strictly.
_LINE = re.compile(rb"PROXY (TCP[46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (\d{1,5}) (\d{1,5})")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?")

#: After the signature: version and command, family and protocol, length of the rest (2.2).
_PREFIX = struct.Struct("!12sBBH")

_LOCAL, _PROXY = 0x20, 0x21
_STREAM = 1
_PROTOCOLS = range(3)

_TLV = struct.Struct("!BH")
_TLS = struct.Struct("!BI")


class Version(enum.Enum):
    V1 = "v1"
    V2 = "v2"


class _Type(enum.IntEnum):
    """Of a TLV (2.2.1 to 2.2.6)."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    TLS = 0x20
    TLS_VERSION = 0x21
    TLS_NAME = 0x22
    TLS_CIPHER = 0x23


class _Client(enum.IntFlag):
    """What a client did (2.2.6)."""

    SPOKE_TLS = 0x01
    GAVE_CERTIFICATE = 0x02
    """Over this connection."""
    HAS_CERTIFICATE = 0x04
    """In this session, which the connection may have resumed."""


class BadHeaderError(Exception):
    """This is no header; the text says why."""


Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Endpoint:
    address: Address
    port: int

    @classmethod
    def of(cls, name: object) -> Endpoint | None:
        """That of a socket's address; None if it is none of the Internet's."""
        if not isinstance(name, tuple):
            return None
        host, port = name[:2]
        return cls(ipaddress.ip_address(host.partition("%")[0]), port)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


Endpoints: TypeAlias = tuple[Endpoint, Endpoint]


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes:
      size: its bytes.
      endpoints: the client, and what it has connected to; None if these are not told (rule 4).
    """

    size: int
    endpoints: Endpoints | None


@dataclass(frozen=True)
class Tls:
    """What is told of a client's TLS connection.

    Attributes:
      server_name: what it asked for (SNI); "" if it did not.
      common_name: that of its certificate, which was verified; None if it has none.
      resumed: the certificate is that of an earlier connection.
    """

    version: str
    cipher: str
    alpn: str | None = None
    server_name: str = ""
    common_name: str | None = None
    resumed: bool = False


# What comes


def parse(data: bytes) -> Header | None:
    """The header that ``data`` begins with; None if more is needed (rule 1).

    Raises:
      BadHeaderError: there is none.
    """
    for beginning, parse_version in ((SIGNATURE, _parse_v2), (WORD, _parse_v1)):
        if data.startswith(beginning[: len(data)]):
            return parse_version(data)
    raise BadHeaderError("it begins with something else")


def _parse_v1(data: bytes) -> Header | None:
    line, end, _ = data[:MOST_V1].partition(b"\r\n")
    if not end:
        if len(data) >= MOST_V1:
            raise BadHeaderError(f"its line has more than {MOST_V1} bytes")
        if b"\n" in line or b"\r" in line[:-1]:
            raise BadHeaderError("its line does not end with CR LF")
        return None
    size = len(line) + len(end)
    if _UNKNOWN.fullmatch(line):
        return Header(size, None)
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadHeaderError("its line is not of the form")
    family, *hosts = (group.decode("ascii") for group in match.groups()[:3])
    ports = match.groups()[3:]
    parse_address = ipaddress.IPv4Address if family == "TCP4" else ipaddress.IPv6Address
    source, destination = (
        Endpoint(_address(parse_address, host), _port(port))
        for host, port in zip(hosts, ports, strict=True)
    )
    return Header(size, (source, destination))


def _address(parse_address: Callable[[str], Address], host: str) -> Address:
    try:
        return parse_address(host)
    except ValueError as error:
        raise BadHeaderError(str(error)) from None


def _port(digits: bytes) -> int:
    port = int(digits)
    if port > 65535 or str(port).encode() != digits:
        raise BadHeaderError(f"{digits.decode()} is not a port")
    return port


def _parse_v2(data: bytes) -> Header | None:
    if len(data) > len(SIGNATURE) and data[len(SIGNATURE)] not in (_LOCAL, _PROXY):
        raise BadHeaderError(f"version and command are {data[len(SIGNATURE)]:#04x}")
    if len(data) < _PREFIX.size:
        return None
    _, command, kind, length = _PREFIX.unpack_from(data)
    family, protocol = divmod(kind, 16)
    is_local = command == _LOCAL
    if not is_local and (family not in _ADDRESS_SIZES or protocol not in _PROTOCOLS):
        raise BadHeaderError(f"family and protocol are {kind:#04x}")
    size = _PREFIX.size + length
    if size > MOST:
        raise BadHeaderError(f"it is to have {size} bytes, more than {MOST}")
    addresses = 0 if is_local else _ADDRESS_SIZES[family]
    if length < addresses:
        raise BadHeaderError(f"its {length} bytes are too few for its addresses")
    if len(data) < size:
        return None
    if is_local or not family:
        return Header(size, None)
    _check_tlvs(data[:size], _PREFIX.size + addresses)
    if protocol != _STREAM or family not in _ADDRESSES:
        return Header(size, None)
    kind_of_address, layout = _ADDRESSES[family]
    source, destination, source_port, destination_port = layout.unpack_from(data, _PREFIX.size)
    return Header(
        size,
        (
            Endpoint(kind_of_address(source), source_port),
            Endpoint(kind_of_address(destination), destination_port),
        ),
    )


#: Of the families that have ports: how their addresses are packed.
_ADDRESSES: dict[int, tuple[Callable[[bytes], Address], struct.Struct]] = {
    1: (ipaddress.IPv4Address, struct.Struct("!4s4sHH")),
    2: (ipaddress.IPv6Address, struct.Struct("!16s16sHH")),
}

#: Of all families: bytes of their addresses. The last is that of local sockets.
_ADDRESS_SIZES = {0: 0, 1: 12, 2: 36, 3: 216}


def _check_tlvs(header: bytes, start: int) -> None:
    """See that the rest of a header is made of TLVs, and its checksum, if it has one, is right."""
    for kind, begin, end in _tlvs(header, start):
        if kind == _Type.CRC32C:
            checked = header[:begin] + bytes(end - begin) + header[end:]
            if header[begin:end] != crc32c(checked).to_bytes(4, "big"):
                raise BadHeaderError("its checksum is wrong")


def _tlvs(header: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """The type of each TLV, and where its value begins and ends."""
    while start < len(header):
        begin = start + _TLV.size
        if begin <= len(header):
            kind, length = _TLV.unpack_from(header, start)
            start = begin + length
        if begin > len(header) or start > len(header):
            raise BadHeaderError("a TLV is longer than the header")
        yield kind, begin, start


def crc32c(data: bytes) -> int:
    """RFC 4960, appendix B."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


# What is sent


def format_header(version: Version, endpoints: Endpoints | None, tls: Tls | None = None) -> bytes:
    """The header for a connection.

    Args:
      endpoints: the client, and what it has connected to; None if it did not come over the
        Internet.
      tls: of which only version 2 tells.
    """
    if endpoints is not None and endpoints[0].address.version != endpoints[1].address.version:
        endpoints = None
    if version is Version.V1:
        return _format_v1(endpoints)
    return _format_v2(endpoints, tls)


def _format_v1(endpoints: Endpoints | None) -> bytes:
    if endpoints is None:
        return b"PROXY UNKNOWN\r\n"
    source, destination = endpoints
    family = f"TCP{source.address.version}"
    text = f"{family} {source.address} {destination.address} {source.port} {destination.port}"
    return f"PROXY {text}\r\n".encode()


def _format_v2(endpoints: Endpoints | None, tls: Tls | None) -> bytes:
    family, addresses = 0, b""
    if endpoints is not None:
        source, destination = endpoints
        family = 1 if source.address.version == 4 else 2
        addresses = _ADDRESSES[family][1].pack(
            source.address.packed, destination.address.packed, source.port, destination.port
        )
    rest = addresses + (b"" if tls is None else _tls_tlvs(tls))
    kind = family << 4 | _STREAM if family else 0
    return _PREFIX.pack(SIGNATURE, _PROXY, kind, len(rest)) + rest


def _tls_tlvs(tls: Tls) -> bytes:
    tlvs = b""
    if tls.alpn:
        tlvs += _tlv(_Type.ALPN, tls.alpn)
    if tls.server_name:
        tlvs += _tlv(_Type.AUTHORITY, tls.server_name)
    client, unverified = _Client.SPOKE_TLS, 1
    details = _tlv(_Type.TLS_VERSION, tls.version) + _tlv(_Type.TLS_CIPHER, tls.cipher)
    if tls.common_name is not None:
        client |= _Client.HAS_CERTIFICATE
        if not tls.resumed:
            client |= _Client.GAVE_CERTIFICATE
        unverified = 0
        details += _tlv(_Type.TLS_NAME, tls.common_name)
    return tlvs + _tlv(_Type.TLS, _TLS.pack(client, unverified) + details)


def _tlv(kind: _Type, value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return _TLV.pack(kind, len(content)) + content
