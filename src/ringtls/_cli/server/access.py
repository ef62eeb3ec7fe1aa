"""The access log: a line for each request, in the combined format of Apache and others.

A server of something else than requests writes its own lines with ``log_line``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from .logs import access_logger

__all__ = ["is_logging", "log_line", "log_request", "now", "printable"]


def is_logging() -> bool:
    """Whether anybody wants these lines."""
    return access_logger.isEnabledFor(logging.INFO)


def log_request(
    *,
    peer: str,
    identity: str,
    method: str,
    target: bytes,
    version: str,
    status: int | None,
    sent: int | None,
    referrer: bytes,
    agent: bytes,
) -> None:
    """Write a line.

    Args:
      peer: HOST:PORT.
      method, target: what came of the first line where the request could not be read.
      version: "" where it could not.
      identity: the subject of the client's certificate, if it has one.
      status: None if the client went away before.
      sent: bytes of the body, if they are known.
    """
    shown = printable(target)
    fields = {
        "peer": peer,
        "identity": identity,
        "method": method,
        "target": shown,
        "version": version,
        "status": status,
        "sent": sent,
        "referrer": printable(referrer),
        "agent": printable(agent),
    }
    line = method, shown, version and f"HTTP/{version}"
    log_line(
        '%s - %s [%s] "%s" %s %s "%s" "%s"',
        peer.rsplit(":", 1)[0],
        printable(identity.encode()) or "-",
        now(),
        " ".join(filter(None, line)) or "-",
        "-" if status is None else status,
        "-" if sent is None else sent,
        fields["referrer"],
        fields["agent"],
        fields=fields,
    )


def log_line(pattern: str, *values: object, fields: Mapping[str, object]) -> None:
    """Write a line: the values in the pattern or, where the log is JSON, the fields."""
    access_logger.info(pattern, *values, extra={"fields": fields})


def now() -> str:
    """The time as it is in a line."""
    return time.strftime("%d/%b/%Y:%H:%M:%S %z")


def printable(text: bytes) -> str:
    """A text of the client's that can't end its field, or its line, in a log."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in text
    )
