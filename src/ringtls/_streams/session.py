"""TLS without I/O: bytes in, bytes out.

What ssl.SSLObject does on two memory BIOs, and the rules that it leaves to its user:

1. The transport's end of input is never told to OpenSSL. With OP_IGNORE_UNEXPECTED_EOF it
   would turn into a clean end. Instead: when more is needed and there is no more, the
   stream was truncated. Only the peer's close_notify reads as the end.
2. ``SSLObject.unwrap`` also tries to read the peer's answer. For an end, input is taken out of
   its way: what lies unread must not prevent the alert, and reading it could. A HelloRequest,
   or the first record of a split NewSessionTicket, puts OpenSSL "in init", where it sends no
   alert. Before a half-close input must be read, and is kept for later reads: unwrap would
   destroy application data that it meets.
3. After a fatal error OpenSSL has queued the alert for the peer. It is sent, and nothing after.
4. A TLS 1.3 server's session tickets are queued when the handshake completes. They stay
   queued until there is something else to send: a client that never reads must not get an
   RST for closing over them. Whatever is sent next follows them, as their sequence numbers ask.

This module imports no socket, no ring and no event loop.
"""

from __future__ import annotations

import ssl
import sys
from typing import TYPE_CHECKING, overload

from .._errors import TruncationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

__all__ = ["TlsSession"]

#: Plaintext bytes that one record holds at most (RFC 8446, section 5.1).
RECORD_SIZE = 16384


class TlsSession:
    """One TLS connection's state.

    Raises:
      ssl.SSLError, ValueError: the context and the names do not fit together.
    """

    __slots__ = (
        "_https_compatible",
        "_input_ended",
        "_more_decrypted",
        "_unread",
        "close_notify_received",
        "close_notify_sent",
        "failure",
        "feed",
        "handshake_done",
        "has_nothing_buffered",
        "held_output",
        "incoming",
        "object",
        "outgoing",
        "peer_was_silent",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
        https_compatible: bool,
    ) -> None:
        if context.check_hostname and not server_side and not server_hostname:
            raise ValueError("the context checks the hostname: server_hostname is needed")
        self.incoming = ssl.MemoryBIO()
        #: Take in what came from the peer.
        self.feed: Callable[[Buffer], object] = self.incoming.write
        self.outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._https_compatible = https_compatible
        self._unread: list[memoryview] = []  # a deque is ten times the size
        self.held_output = 0
        self._more_decrypted = False  # by OpenSSL, and not read yet
        self._input_ended = False
        self.handshake_done = False
        #: True if the peer had sent nothing when the handshake last went on.
        self.peer_was_silent = True
        #: True if there is nothing to read but what may be in ``incoming``.
        self.has_nothing_buffered = False
        self.close_notify_sent = False
        self.close_notify_received = False
        self.failure: ssl.SSLError | None = None

    # Ciphertext

    def feed_end(self) -> None:
        """Nothing more will come."""
        self._input_ended = True
        self._update()

    @property
    def has_output(self) -> bool:
        """True if there is something that must be sent now."""
        return self.outgoing.pending > self.held_output

    def take_output(self) -> bytes:
        """All that is to be sent to the peer, in order."""
        self.held_output = 0
        return self.outgoing.read()

    def take_trailing_input(self) -> bytes:
        """What came after the peer's close_notify: it is not TLS."""
        return self.incoming.read()

    @property
    def pending(self) -> int:
        """Plaintext bytes that are decrypted and not read."""
        return sum(map(len, self._unread)) + self.object.pending()

    # Plaintext. Each returns None or False where more input is needed.

    def handshake(self, *, for_reading: bool = False) -> bool:
        """Go on with the handshake. True when it is complete.

        ``for_reading``: True also where ``read`` takes the end of the input for an end.

        Raises:
          ssl.SSLError: it failed, or the input has ended in the middle of it.
        """
        if self.failure is not None:
            raise _without_frames(self.failure)
        if self.object.server_side and not (self.incoming.pending or self._input_ended):
            return False  # it is the client's turn, and OpenSSL would need an exception to say so
        if self.incoming.pending:
            self.peer_was_silent = False
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            if self._input_ended and self._https_compatible and for_reading:
                return True
            if self._input_ended:
                raise self._fail(_unexpected_eof("during the handshake")) from None
            return False
        except ssl.SSLError as error:
            raise self._fail(error) from None
        self.handshake_done = True
        if self.object.server_side and self.object.version() == "TLSv1.3":
            self.held_output = self.outgoing.pending
        self._update()
        return True

    @overload
    def read(self, max_bytes: int) -> bytes | None: ...

    @overload
    def read(self, max_bytes: int, memory: memoryview) -> int | None: ...

    def read(self, max_bytes: int, memory: memoryview | None = None) -> bytes | int | None:
        """Up to ``max_bytes`` of what the peer sent; b"" after its close_notify.

        With ``memory``, which has that many bytes, they are put there and their number is
        returned: as SSLObject.read.

        Raises:
          TruncationError: the input has ended without close_notify.
          ssl.SSLError: the peer broke the protocol, or sent a fatal alert.
        """
        if self.has_nothing_buffered:
            return self._read_records(max_bytes, memory) if self.incoming.pending else None
        if self._unread:
            data = self._read_unread(max_bytes)
            if memory is None:
                return bytes(data)
            memory[: len(data)] = data
            return len(data)
        if self.failure is not None:
            raise _without_frames(self.failure)
        if self.close_notify_received:
            return b"" if memory is None else 0
        if self.incoming.pending or self._more_decrypted:
            received = self._read_records(max_bytes, memory)
            if received is not None:
                return received
        if not self._input_ended:
            return None
        if self._https_compatible:
            return b"" if memory is None else 0
        raise TruncationError(
            "the connection ended without close_notify: what was received may be incomplete"
        )

    def has_input(self) -> bool:
        """True if ``read`` would give data, the end or an error now. What has come is decrypted
        for that: a session ticket alone is neither."""
        if self.has_nothing_buffered and self.incoming.pending:
            try:
                data = self._read_records(RECORD_SIZE)
            except ssl.SSLError:
                return True  # it is kept as the failure
            if data:
                self.put_back(data)
        return self.handshake_done and not self.has_nothing_buffered

    def put_back(self, data: bytes) -> None:
        """Have the next ``read`` give this again."""
        self._unread.insert(0, memoryview(data))
        self._update()

    def write(self, data: Buffer) -> bool:
        """Encrypt all of ``data``. False if input is needed first.

        Raises:
          ssl.SSLError: as for ``read``.
        """
        try:
            self.object.write(data)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._fail(error) from None
        return True

    def close_output(self, *, keep_unread: bool) -> None:
        """Queue our close_notify (rule 2).

        Not possible, and ``close_notify_sent`` stays false, after a failure and while a handshake
        message has come only in part.

        Args:
          keep_unread: what came and was not read yet stays readable.
        """
        if self.close_notify_sent or self.failure is not None:
            return
        if keep_unread:
            self._save_unread()
            if self.failure is None:
                self._notify()
            return
        unread = self.incoming.read()
        self._notify()
        if unread and not self.close_notify_sent and self.failure is None:
            self.incoming.write(unread)  # it may have the rest of the message
            self._save_unread()
            self._notify()

    def _notify(self) -> None:
        pending = self.outgoing.pending
        try:
            self.object.unwrap()
            self.close_notify_received = True
            self._update()
        except ssl.SSLWantReadError:
            pass  # the peer's alert is yet to come: the usual answer
        except ssl.SSLError as error:
            if error.reason == "SHUTDOWN_WHILE_IN_INIT":
                return  # a handshake message has come only in part
            self._fail(error)
        self.close_notify_sent = self.outgoing.pending > pending

    # Helpers

    @overload
    def _read_records(self, max_bytes: int) -> bytes | None: ...

    @overload
    def _read_records(self, max_bytes: int, memory: memoryview | None) -> bytes | int | None: ...

    def _read_records(self, max_bytes: int, memory: memoryview | None = None) -> bytes | int | None:
        """As many records as are there, in one piece. Parameters as ``read``."""
        pieces: list[bytes] = []
        left = max_bytes
        while left:
            size = left if left < RECORD_SIZE else RECORD_SIZE
            try:
                if memory is None:
                    data = self.object.read(size)
                    taken = len(data)
                else:
                    with memory[max_bytes - left :] as rest:
                        taken = self.object.read(size, rest)  # type: ignore[assignment]
            except ssl.SSLWantReadError:
                self._more_decrypted = False
                break
            except ssl.SSLZeroReturnError:
                taken = 0
            except ssl.SSLError as error:
                if left == max_bytes:
                    raise self._fail(error) from None
                self._fail(error)  # for the next read
                break
            if not taken:
                self.close_notify_received = True
                break
            self._more_decrypted = taken == size and self.object.pending() > 0
            is_all = not (self._more_decrypted or self.incoming.pending)
            if memory is None:
                if is_all and not pieces:
                    return data
                pieces.append(data)
            left -= taken
            if is_all:
                break
        self._update()
        if left == max_bytes and not self.close_notify_received:
            return None
        return b"".join(pieces) if memory is None else max_bytes - left

    def _read_unread(self, max_bytes: int) -> memoryview:
        data = self._unread.pop(0)
        if len(data) > max_bytes:
            self._unread.insert(0, data[max_bytes:])
        self._update()
        return data[:max_bytes]

    def _save_unread(self) -> None:
        while not self.close_notify_received and (self.incoming.pending or self._more_decrypted):
            try:
                data = self._read_records(sys.maxsize)
            except ssl.SSLError:
                return  # it is kept as the failure
            if data is None:
                return
            if data:
                self._unread.append(memoryview(data))
                self._update()

    def _fail(self, error: ssl.SSLError) -> ssl.SSLError:
        self.failure = _without_frames(error)
        self.held_output = 0
        self._update()
        return error

    def _update(self) -> None:
        self.has_nothing_buffered = not (
            self._unread
            or self._more_decrypted
            or self._input_ended
            or self.close_notify_received
            or self.failure is not None
            or not self.handshake_done
        )


def _without_frames(error: ssl.SSLError) -> ssl.SSLError:
    """A copy to keep: an error that was raised refers to frames, and they to the stream."""
    copy = type(error)(*error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def _unexpected_eof(when: str) -> ssl.SSLEOFError:
    """What OpenSSL would have raised, had it been told of the end (rule 1)."""
    error = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, f"the peer ended the connection {when}")
    error.library, error.reason = "SSL", "UNEXPECTED_EOF_WHILE_READING"
    return error
