"""Ends that a protocol breaks off, since its peer must not take half a message for a whole one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .socket import SocketStream
    from .tls import TlsStream

__all__ = ["break_off"]


async def break_off(stream: SocketStream | TlsStream[Any]) -> None:
    """End a stream as rule C21 has it, whatever its ``reset_on_error``, and with TLS or without.

    Nothing if its end has begun. Not a cancellation point; bounded by its shutdown timeout.
    """
    closing = stream._closing
    closing.reset_on_error = True
    closing.start(after_error=True)
    await closing.wait()
