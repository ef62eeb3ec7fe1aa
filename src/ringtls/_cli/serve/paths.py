"""From the target of a request to names below the served directory, and back.

Rules (RFC 9112, section 3.2; RFC 3986):

1. A target is a path, or a whole http or https URL, whose host is not looked at. It has no user
   and no fragment; what is after "?" is not looked at.
2. The path is split at its slashes first and percent-decoded then. A part that decodes to
   something with a slash in it, or that is empty, "." or "..", names nothing: a client that
   means well has resolved those.
3. "%" without two hex digits, and NUL, are no path at all.
"""

from __future__ import annotations

import os
import re
import urllib.parse

__all__ = ["BadTargetError", "path_of", "quoted", "segments_of"]

_ORIGIN = re.compile(rb"https?://[^/?#@]+(?![^/?#])", re.IGNORECASE)

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")


class BadTargetError(ValueError):
    """A target that is none (rules 1 and 3)."""


def path_of(target: bytes) -> tuple[bytes, bytes]:
    """The path of a target, and its query with the "?".

    Raises:
      BadTargetError
    """
    if not target.startswith(b"/"):
        match = _ORIGIN.match(target)
        if match is None:
            raise BadTargetError("the target is neither a path nor an http URL")
        target = target[match.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if b"#" in target:
        raise BadTargetError("a target has no fragment")
    path, mark, query = target.partition(b"?")
    return path, mark + query


def segments_of(path: bytes) -> list[str]:
    """The names in a path; the last is empty if the path ends with a slash.

    Raises:
      FileNotFoundError: the path can't name a file (rule 2).
      BadTargetError
    """
    if _BAD_ESCAPE.search(path):
        raise BadTargetError("% without two hex digits, or NUL")
    segments = [os.fsdecode(urllib.parse.unquote_to_bytes(part)) for part in path[1:].split(b"/")]
    for segment in segments:
        if segment in (".", "..") or "/" in segment:
            raise FileNotFoundError(path)
    if "" in segments[:-1]:
        raise FileNotFoundError(path)
    return segments


def quoted(segments: list[str]) -> str:
    """The path that ``segments_of`` takes apart."""
    return "/" + "/".join(urllib.parse.quote(os.fsencode(segment)) for segment in segments)
