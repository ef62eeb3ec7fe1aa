"""Requests that a server must not be fooled by, and what is answered to them.

Each is sent with PROBE behind it, which asks for the end of the connection. So what is answered
shows what the server takes for a request: "400" is a refusal that ends the connection, "200 200"
an answer after which the probe is a request of its own. More would be smuggling.

What nginx 1.22.1 of Debian 12 answered, with the same files and ``autoindex on``, stands beside.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass

__all__ = ["PROBE", "TABLE", "Hostile", "answers"]

PROBE = b"GET /text.txt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

_STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d) ")


@dataclass(frozen=True)
class Hostile:
    """A request.

    Attributes:
      nginx, ours: the statuses of the answers, in order.
    """

    name: str
    data: bytes
    nginx: str
    ours: str


def answers(sock: ssl.SSLSocket, data: bytes) -> str:
    """What is answered, until the connection ends."""
    received = b""
    try:
        sock.sendall(data + PROBE)
        while piece := sock.recv(65536):
            received += piece
    except (ssl.SSLError, ConnectionError):
        pass  # a refusal may be followed by a reset, if more was sent than read
    return b" ".join(_STATUS.findall(received)).decode()


H = b"Host: localhost\r\n"
G = b"GET /text.txt HTTP/1.1"


def req(line: bytes, *headers: bytes, host: bool = True) -> bytes:
    """A request, with a Host unless there is to be none."""
    fields = b"".join(header + b"\r\n" for header in headers)
    return line + b"\r\n" + (H if host else b"") + fields + b"\r\n"


TABLE = (
    # Request line.
    Hostile("plain", req(G), "200 200", "200 200"),
    Hostile("a blank line before", b"\r\n" + req(G), "200 200", "200 200"),
    Hostile("many blank lines before", b"\r\n" * 50 + req(G), "200 200", "200 200"),
    Hostile("bare LF", b"GET /text.txt HTTP/1.1\nHost: localhost\n\n", "200 200", "400"),
    Hostile(
        "bare LF after the request line",
        b"GET /text.txt HTTP/1.1\nHost: localhost\r\n\r\n",
        "200 200",
        "400",
    ),
    Hostile(
        "bare LF after a header",
        b"GET /text.txt HTTP/1.1\r\nHost: localhost\n\r\n",
        "200 200",
        "400",
    ),
    Hostile(
        "bare LF for the empty line",
        b"GET /text.txt HTTP/1.1\r\nHost: localhost\r\n\n",
        "200 200",
        "400",
    ),
    Hostile(
        "bare CR after the request line",
        b"GET /text.txt HTTP/1.1\rHost: localhost\r\n\r\n",
        "400",
        "400",
    ),
    Hostile("bare CR in a header", req(G, b"A: b\rC: d"), "400", "400"),
    Hostile("CR CR LF", b"GET /text.txt HTTP/1.1\r\r\nHost: localhost\r\n\r\n", "400", "400"),
    Hostile("two spaces before the target", req(b"GET  /text.txt HTTP/1.1"), "200 200", "200 200"),
    Hostile("two spaces after the target", req(b"GET /text.txt  HTTP/1.1"), "200 200", "200 200"),
    Hostile("space after the version", req(b"GET /text.txt HTTP/1.1 "), "200 200", "400"),
    Hostile("space before the method", req(b" GET /text.txt HTTP/1.1"), "400", "400"),
    Hostile("tab for a space", req(b"GET\t/text.txt\tHTTP/1.1"), "400", "400"),
    Hostile("space in the target", req(b"GET /text.txt x HTTP/1.1"), "400", "400"),
    Hostile("no version", b"GET /text.txt\r\n\r\n", "", "400"),
    Hostile("no version, with headers", req(b"GET /text.txt"), "", "400"),
    Hostile("HTTP/0.9", req(b"GET /text.txt HTTP/0.9"), "400", "400"),
    Hostile("HTTP/1.2", req(b"GET /text.txt HTTP/1.2"), "200 200", "400"),
    Hostile("HTTP/2.0", req(b"GET /text.txt HTTP/2.0"), "505", "505"),
    Hostile("HTTP/3.0", req(b"GET /text.txt HTTP/3.0"), "505", "400"),
    Hostile("HTTP/1.10", req(b"GET /text.txt HTTP/1.10"), "200 200", "400"),
    Hostile("HTTP/01.1", req(b"GET /text.txt HTTP/01.1"), "400", "400"),
    Hostile("HTTP/1", req(b"GET /text.txt HTTP/1"), "400", "400"),
    Hostile("http/1.1 in lower case", req(b"GET /text.txt http/1.1"), "400", "400"),
    Hostile("RTSP/1.0", req(b"GET /text.txt RTSP/1.0"), "400", "400"),
    Hostile("RTSP/1.1", req(b"GET /text.txt RTSP/1.1"), "400", "400"),
    Hostile("ICE/1.1", req(b"SOURCE /text.txt ICE/1.0"), "400", "400"),
    Hostile("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400", "400"),
    Hostile("HTTP/1.0 without Host", b"GET /text.txt HTTP/1.0\r\n\r\n", "200", "200"),
    Hostile(
        "HTTP/1.0, keep-alive",
        b"GET /text.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "200 200",
        "200 200",
    ),
    Hostile("method in lower case", req(b"get /text.txt HTTP/1.1"), "400", "400"),
    Hostile("unknown method", req(b"BREW /text.txt HTTP/1.1"), "405 200", "405"),
    Hostile("method with a control character", req(b"G\x01T /text.txt HTTP/1.1"), "400", "400"),
    Hostile("method with a colon", req(b"GE:T /text.txt HTTP/1.1"), "400", "400"),
    Hostile("no method", req(b"/text.txt HTTP/1.1"), "400", "400"),
    Hostile("POST without a body", req(b"POST /text.txt HTTP/1.1"), "405 200", "405 200"),
    Hostile("TRACE", req(b"TRACE /text.txt HTTP/1.1"), "405", "405 200"),
    Hostile("OPTIONS *", req(b"OPTIONS * HTTP/1.1"), "400", "405 200"),
    Hostile("CONNECT", req(b"CONNECT localhost:443 HTTP/1.1"), "400", "405"),
    Hostile("Upgrade", req(G, b"Connection: upgrade", b"Upgrade: websocket"), "200 200", "200 200"),
    Hostile(
        "Upgrade to h2c",
        req(
            G,
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        "200 200",
        "200 200",
    ),
    # Target.
    Hostile("GET *", req(b"GET * HTTP/1.1"), "400", "400"),
    Hostile("no slash", req(b"GET text.txt HTTP/1.1"), "400", "400"),
    Hostile("whole URL", req(b"GET http://localhost/text.txt HTTP/1.1"), "200 200", "200 200"),
    Hostile(
        "whole URL of another host",
        req(b"GET http://other.example/text.txt HTTP/1.1"),
        "200 200",
        "200 200",
    ),
    Hostile(
        "whole URL without a path", req(b"GET http://localhost HTTP/1.1"), "200 200", "200 200"
    ),
    Hostile(
        "whole URL with a user", req(b"GET http://user@localhost/text.txt HTTP/1.1"), "400", "400"
    ),
    Hostile("ftp URL", req(b"GET ftp://localhost/text.txt HTTP/1.1"), "200 200", "400"),
    Hostile("fragment", req(b"GET /text.txt#a HTTP/1.1"), "200 200", "400"),
    Hostile("parent of the root", req(b"GET /.. HTTP/1.1"), "400", "404 200"),
    Hostile("traversal", req(b"GET /../secret HTTP/1.1"), "400", "404 200"),
    Hostile("traversal, encoded", req(b"GET /%2e%2e/secret HTTP/1.1"), "400", "404 200"),
    Hostile("traversal, slash encoded", req(b"GET /..%2fsecret HTTP/1.1"), "400", "404 200"),
    Hostile(
        "traversal, encoded twice", req(b"GET /%252e%252e/secret HTTP/1.1"), "404 200", "404 200"
    ),
    Hostile(
        "traversal, overlong UTF-8", req(b"GET /%c0%ae%c0%ae/secret HTTP/1.1"), "404 200", "404 200"
    ),
    Hostile("traversal with backslashes", req(b"GET /..\\secret HTTP/1.1"), "404 200", "404 200"),
    Hostile(
        "traversal that comes back", req(b"GET /sub/../text.txt HTTP/1.1"), "200 200", "404 200"
    ),
    Hostile(
        "traversal through a file", req(b"GET /text.txt/../text.txt HTTP/1.1"), "200 200", "404 200"
    ),
    Hostile(
        "traversal in the query", req(b"GET /text.txt?/../../secret HTTP/1.1"), "200 200", "200 200"
    ),
    Hostile("two slashes", req(b"GET //text.txt HTTP/1.1"), "200 200", "404 200"),
    Hostile("file with a slash", req(b"GET /text.txt/ HTTP/1.1"), "404 200", "404 200"),
    Hostile("dot", req(b"GET /./text.txt HTTP/1.1"), "200 200", "404 200"),
    Hostile("symlink that leads out", req(b"GET /outside HTTP/1.1"), "200 200", "404 200"),
    Hostile("hidden file", req(b"GET /.hidden HTTP/1.1"), "200 200", "404 200"),
    Hostile("FIFO", req(b"HEAD /nothing HTTP/1.1"), "404 200", "404 200"),
    Hostile("NUL, encoded", req(b"GET /text.txt%00 HTTP/1.1"), "400", "400"),
    Hostile("NUL", req(b"GET /text.txt\x00 HTTP/1.1"), "400", "400"),
    Hostile("control character in the target", req(b"GET /text\x01.txt HTTP/1.1"), "400", "400"),
    Hostile("DEL in the target", req(b"GET /text\x7f.txt HTTP/1.1"), "400", "400"),
    Hostile("raw UTF-8 in the target", req(b"GET /t\xc3\xa9xt HTTP/1.1"), "404 200", "400"),
    Hostile("CR LF, encoded", req(b"GET /%0d%0aSet-Cookie:a=b HTTP/1.1"), "404 200", "404 200"),
    Hostile(
        "redirect with CR LF in the query",
        req(b"GET /sub?%0d%0aSet-Cookie:a=b HTTP/1.1"),
        "301 200",
        "301 200",
    ),
    Hostile("percent alone", req(b"GET /% HTTP/1.1"), "400", "400"),
    Hostile("percent with one digit", req(b"GET /%2 HTTP/1.1"), "400", "400"),
    Hostile("percent with letters", req(b"GET /%zz HTTP/1.1"), "400", "400"),
    Hostile("target of 10,000 bytes", req(b"GET /" + b"x" * 10_000 + b" HTTP/1.1"), "414", "414"),
    Hostile("target of 100,000 bytes", req(b"GET /" + b"x" * 100_000 + b" HTTP/1.1"), "414", "414"),
    Hostile("name of 300 bytes", req(b"GET /" + b"x" * 300 + b" HTTP/1.1"), "404 200", "404 200"),
    # Host.
    Hostile("no Host", req(G, host=False), "400", "400"),
    Hostile("empty Host", req(G, b"Host:", host=False), "400", "400"),
    Hostile("two Hosts", req(G, b"Host: localhost"), "400", "400"),
    Hostile("two Hosts, other", req(G, b"Host: other.example"), "400", "400"),
    Hostile("Host with a space", req(G, b"Host: local host", host=False), "400", "400"),
    Hostile("Host with a slash", req(G, b"Host: localhost/x", host=False), "400", "400"),
    Hostile("Host with a comma", req(G, b"Host: a,b", host=False), "200 200", "200 200"),
    Hostile("Host with a bad port", req(G, b"Host: localhost:x", host=False), "200 200", "400"),
    Hostile(
        "Host with an IPv6 address", req(G, b"Host: [::1]:443", host=False), "200 200", "200 200"
    ),
    Hostile("Host with a user", req(G, b"Host: user@localhost", host=False), "200 200", "400"),
    # Header syntax.
    Hostile("space before the colon", req(G, b"A : b"), "400", "400"),
    Hostile("tab before the colon", req(G, b"A\t: b"), "400", "400"),
    Hostile("space before a name", req(G, b" A: b"), "400", "400"),
    Hostile(
        "space before the first name",
        b"GET /text.txt HTTP/1.1\r\n Host: localhost\r\n\r\n",
        "400",
        "400",
    ),
    Hostile("folded line", req(G, b"A: b\r\n c"), "400", "400"),
    Hostile("folded with a tab", req(G, b"A: b\r\n\tc"), "400", "400"),
    Hostile("no colon", req(G, b"nonsense"), "200 200", "400"),
    Hostile("no name", req(G, b": b"), "400", "400"),
    Hostile("name with a control character", req(G, b"A\x01: b"), "400", "400"),
    Hostile("name with an underscore", req(G, b"A_B: c"), "200 200", "200 200"),
    Hostile("name with UTF-8", req(G, b"\xc3\xa9: b"), "200 200", "400"),
    Hostile("value with NUL", req(G, b"A: b\x00c"), "400", "400"),
    Hostile("value with a control character", req(G, b"A: b\x01c"), "200 200", "400"),
    Hostile("value with UTF-8", req(G, b"A: \xc3\xa9"), "200 200", "200 200"),
    Hostile("name in parentheses", req(G, b"A(b): c"), "200 200", "400"),
    Hostile("1,000 headers", req(G, *[b"A%d: b" % i for i in range(1000)]), "400", "431"),
    Hostile("header of 20,000 bytes", req(G, b"A: " + b"x" * 20_000), "400", "431"),
    Hostile("header of 100,000 bytes", req(G, b"A: " + b"x" * 100_000), "400", "431"),
    # Bodies.
    Hostile("Content-Length 0", req(G, b"Content-Length: 0"), "200 200", "200 200"),
    Hostile("Content-Length 0 and a space", req(G, b"Content-Length: 0 "), "200 200", "200 200"),
    Hostile(
        "Content-Length of 5,000 zeros",
        req(G, b"Content-Length: " + b"0" * 5000),
        "200 200",
        "200 200",
    ),
    Hostile(
        "Content-Length of 5,000 zeros and 5",
        req(G, b"Content-Length: " + b"0" * 5000 + b"5") + b"12345",
        "200 200",
        "200",
    ),
    Hostile("GET with a body", req(G, b"Content-Length: 5") + b"12345", "200 200", "200"),
    Hostile(
        "a request as a body",
        req(G, b"Content-Length: %d" % len(req(G))) + req(G),
        "200 200",
        "200",
    ),
    Hostile(
        "POST with a body",
        req(b"POST /text.txt HTTP/1.1", b"Content-Length: 5") + b"12345",
        "405 200",
        "405",
    ),
    Hostile(
        "two Content-Lengths, same",
        req(G, b"Content-Length: 5", b"Content-Length: 5") + b"12345",
        "400",
        "400",
    ),
    Hostile(
        "two Content-Lengths, other",
        req(G, b"Content-Length: 5", b"Content-Length: 6") + b"12345",
        "400",
        "400",
    ),
    Hostile("Content-Length with a list", req(G, b"Content-Length: 5, 5") + b"12345", "400", "400"),
    Hostile("Content-Length -1", req(G, b"Content-Length: -1"), "400", "400"),
    Hostile("Content-Length +5", req(G, b"Content-Length: +5") + b"12345", "400", "400"),
    Hostile("Content-Length 0x5", req(G, b"Content-Length: 0x5") + b"12345", "400", "400"),
    Hostile("Content-Length of letters", req(G, b"Content-Length: five"), "400", "400"),
    Hostile("Content-Length empty", req(G, b"Content-Length:"), "400", "400"),
    Hostile(
        "Content-Length that overflows",
        req(G, b"Content-Length: 99999999999999999999999"),
        "400",
        "400",
    ),
    Hostile(
        "Content-Length 5 with a space", req(G, b"Content-Length: 5 5") + b"12345", "400", "400"
    ),
    Hostile("chunked", req(G, b"Transfer-Encoding: chunked") + b"0\r\n\r\n", "200 200", "200"),
    Hostile(
        "chunked with a body",
        req(G, b"Transfer-Encoding: chunked") + b"5\r\n12345\r\n0\r\n\r\n",
        "200 200",
        "200",
    ),
    Hostile(
        "Content-Length and chunked",
        req(G, b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        "400",
        "400",
    ),
    Hostile(
        "chunked and Content-Length",
        req(G, b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n",
        "400",
        "400",
    ),
    Hostile(
        "two Transfer-Encodings",
        req(G, b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity") + b"0\r\n\r\n",
        "400",
        "400",
    ),
    Hostile(
        "Transfer-Encoding of two",
        req(G, b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
        "501",
        "501",
    ),
    Hostile(
        "chunked is not the last",
        req(G, b"Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
        "501",
        "400",
    ),
    Hostile("Transfer-Encoding identity", req(G, b"Transfer-Encoding: identity"), "501", "400"),
    Hostile(
        "Transfer-Encoding xchunked",
        req(G, b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
        "501",
        "400",
    ),
    Hostile(
        "Transfer-Encoding with a tab",
        req(G, b"Transfer-Encoding:\tchunked") + b"0\r\n\r\n",
        "501",
        "200",
    ),
    Hostile(
        "Transfer-Encoding with a vertical tab",
        req(G, b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n",
        "501",
        "400",
    ),
    Hostile(
        "Transfer-Encoding with a space before the colon",
        req(G, b"Transfer-Encoding : chunked") + b"0\r\n\r\n",
        "400",
        "400",
    ),
    Hostile(
        "chunked in HTTP/1.0",
        req(b"GET /text.txt HTTP/1.0", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        "400",
        "400",
    ),
    Hostile(
        "chunk size with a sign",
        req(G, b"Transfer-Encoding: chunked") + b"+5\r\n12345\r\n0\r\n\r\n",
        "400",
        "200",
    ),
    Hostile(
        "chunk size that overflows",
        req(G, b"Transfer-Encoding: chunked") + b"fffffffffffffffff\r\n",
        "400",
        "200",
    ),
    Hostile("Expect", req(G, b"Expect: 100-continue"), "100 200 200", "200 200"),
    Hostile(
        "Expect, with a body",
        req(b"POST /text.txt HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 5") + b"12345",
        "405 200",
        "405",
    ),
    # Ranges, pipelining.
    Hostile("range from behind the end", req(G, b"Range: bytes=100-"), "416 200", "416 200"),
    Hostile(
        "ranges that overlap, 200 of them",
        req(G, b"Range: bytes=" + b",".join([b"0-"] * 200)),
        "200 200",
        "200 200",
    ),
    Hostile(
        "range that overflows",
        req(G, b"Range: bytes=0-99999999999999999999999"),
        "416 200",
        "200 200",
    ),
    Hostile("range of another unit", req(G, b"Range: lines=0-1"), "200 200", "200 200"),
    Hostile("pipelined", req(G) * 3, "200 200 200 200", "200 200 200 200"),
    Hostile("pipelined, then nonsense", req(G) + b"nonsense\r\n\r\n", "200 400", "200 400"),
    Hostile("close, then another", req(G, b"Connection: close") + req(G), "200", "200"),
    Hostile("garbage", bytes(range(256)), "400", "400"),
    Hostile("a TLS record", b"\x16\x03\x01\x00\x05hello\r\n\r\n", "400", "400"),
    Hostile("SMTP", b"EHLO localhost\r\n\r\n", "400", "405"),
)
