"""TLS without I/O: bytes in, bytes out.

A TlsSession runs ssl.SSLObject on two memory BIOs, and keeps the rules that it leaves to its user:

1. OpenSSL is never told that the transport's input has ended: with OP_IGNORE_UNEXPECTED_EOF it
   would report a clean end. Instead, input that ends where more is needed is a truncation. Only
   the peer's close_notify reads as the end.
2. ``SSLObject.unwrap`` also tries to read the peer's answer. At an end, unread input is hidden
   from it, because reading could prevent the alert: a HelloRequest, or the first record of a
   split NewSessionTicket, puts OpenSSL "in init", where it sends no alert. Before a half-close,
   input is read first and kept for later reads: unwrap would destroy application data.
3. After a fatal error OpenSSL has queued the alert for the peer. It is sent, and nothing after it.
4. A TLS 1.3 server's session tickets are queued when the handshake completes. They stay queued
   until there is something else to send: sent at once, they would make a client that closes
   without reading reset the connection. The next record is sent after them, because their
   sequence numbers come first.
5. A memory BIO never gives memory back. So sessions own none: the sessions of a thread share one
   pair (_Bios). Input waits in a backlog and enters the BIO about one record at a time, when it
   is read. One session at a time may leave its input in the BIO, which saves a copy for a bulk
   transfer. Output moves from the BIO to a list at the end of each call.
   A call may interrupt another session's call: from a finalizer, a signal handler, the SNI
   callback. It first hands the BIOs' content to the session that owns it. The interrupted call
   then finds the pair empty, and takes its input from its backlog.
6. Reading makes OpenSSL answer key updates and refused renegotiations. The caller must be able to
   stop before many answers pile up. So once a call has produced output, it reads no more than
   what is in the BIO.
7. With a server's request for a certificate in mind, and until it is written, OpenSSL is "in
   init" and sends no alert. So it is written at once, and waits for something else to be sent.
8. An exception can leave a call that reads: memory is short, a signal's handler raises. What was
   decrypted may be gone with it. What comes behind must not look as if nothing were missing, so the
   input is torn there, and is read no further.

This module imports no socket, no ring and no event loop.
"""

from __future__ import annotations

import ssl
import sys
import threading
from threading import get_ident
from typing import overload

from .._errors import TruncationError, without_frames

__all__ = ["TlsSession"]

#: Bytes that one record has at most (RFC 8446, sections 5.1 and 5.2), and of those the plaintext.
LARGEST_RECORD = 5 + 16384 + 256
RECORD_SIZE = 16384

#: Bytes of the backlog that are together. Small pieces on their own would cost many times their
#: size; of large ones much would have to be moved back and forth.
CHUNK_SIZE = 16384

#: Once glibc has freed a block that it had mapped, it takes smaller ones from the heap, and keeps
#: twice that at the heap's end (mallopt(3), M_MMAP_THRESHOLD). Before, what a transfer frees goes
#: back to the kernel, to come again as new pages, with each piece.
LARGEST_BLOCK = 512 * 1024

#: Bytes of input that may wait in the BIO.
MOST_WAITING = 65536


class _Bios:
    """What the sessions of a thread hand OpenSSL its input in, and get its output from (rule 5)."""

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.thread = get_ident()
        self.user: TlsSession | None = None  # whose call it is
        self.holder: TlsSession | None = None  # whose input waits in ``incoming``
        bytes(LARGEST_BLOCK)


class _ThisThread(threading.local):
    def __init__(self) -> None:
        self.bios = _Bios()


_this_thread = _ThisThread()


class TlsSession:
    """One TLS connection's state. It belongs to the thread that makes it.

    Raises:
      ssl.SSLError, ValueError: the context and the names do not fit together.
    """

    __slots__ = (
        "_backlog",
        "_bios",
        "_input_ended",
        "_input_is_torn",
        "_is_server",
        "_more_decrypted",
        "_peer_was_silent",
        "_tickets",
        "_unread",
        "close_notify_received",
        "close_notify_sent",
        "failure",
        "handshake_done",
        "has_ciphertext",
        "has_last_word",
        "has_nothing_buffered",
        "https_compatible",
        "object",
        "output",
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
        self._bios = bios = _this_thread.bios
        # As bytes: of a str ssl makes a name of IDNA 2003, and refuses what is none.
        name = None if server_hostname is None else server_hostname.encode("ascii")
        self.object = context.wrap_bio(
            bios.incoming, bios.outgoing, server_side=server_side, server_hostname=name
        )
        self._is_server = server_side
        self.https_compatible = https_compatible
        #: True if something has come that OpenSSL has not read yet.
        self.has_ciphertext = False
        self._backlog: list[bytes] = []  # a deque is ten times the size
        #: What must be sent now. ``take_output`` has it, with what may go out before it.
        self.output: list[bytes] = []
        self._tickets = b""  # rule 4
        self._unread: list[memoryview] = []
        self._more_decrypted = False  # by OpenSSL, and not read yet
        self._input_ended = False
        self._input_is_torn = False  # rule 8
        self._peer_was_silent = True  # when the handshake last went on
        self.handshake_done = False
        #: True if the handshake ended with a message of ours, False if with the peer's.
        self.has_last_word = False
        #: True if there is nothing to read but what ``has_ciphertext`` tells of.
        self.has_nothing_buffered = False
        self.close_notify_sent = False
        self.close_notify_received = False
        self.failure: ssl.SSLError | None = None

    # Ciphertext

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what came from the peer. It is copied."""
        self.has_ciphertext = True
        backlog = self._backlog
        if not backlog and len(data) <= CHUNK_SIZE:
            backlog.append(bytes(data))
        elif self._may_wait_in_bio(len(data)):
            self._bios.incoming.write(data)
            self._bios.holder = self
        elif backlog and len(backlog[-1]) + len(data) <= CHUNK_SIZE:
            backlog[-1] = b"".join((backlog[-1], data))
        else:
            view = memoryview(data)
            for start in range(0, len(view), CHUNK_SIZE):
                backlog.append(bytes(view[start : start + CHUNK_SIZE]))

    def feed_end(self) -> None:
        """Nothing more will come."""
        self._input_ended = True
        self._update()

    @property
    def peer_is_silent(self) -> bool:
        """True if nothing has come before the end of the handshake."""
        return self._peer_was_silent and not self.has_ciphertext

    @property
    def unread_input(self) -> int:
        """Bytes that have come, and OpenSSL has not read yet."""
        in_bio = self._bios.incoming.pending if self._bios.holder is self else 0
        return in_bio + sum(map(len, self._backlog))

    def take_output(self) -> bytes:
        """All that is to be sent to the peer, in order."""
        if len(self.output) == 1 and not self._tickets:
            return self.output.pop()
        output = b"".join([self._tickets, *self.output])
        self._tickets = b""
        self.output.clear()
        return output

    def take_trailing_input(self) -> bytes:
        """What came after the peer's close_notify: it is not TLS."""
        self._give_up_bio()
        trailing = b"".join(self._backlog)
        self._backlog.clear()
        return trailing

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
            raise without_frames(self.failure)
        if self._is_server and not (self.has_ciphertext or self._input_ended):
            return False  # it is the client's turn, and OpenSSL would need an exception to say so
        if self.has_ciphertext:
            self._peer_was_silent = False
        outer = self._enter()
        try:
            self._shake_hands()
        except ssl.SSLWantReadError:
            if self._input_ended and self.https_compatible and for_reading:
                return True
            if self._input_ended:
                raise self._fail(_unexpected_eof("during the handshake")) from None
            return False
        except ssl.SSLError as error:
            raise self._fail(error) from None
        finally:
            self._leave(outer)
        self.handshake_done = True
        self.has_last_word = bool(self.output)
        if self._is_server and self.object.version() == "TLSv1.3":
            self._tickets = self.take_output()
            self.has_last_word = False
        self._update()
        return True

    @overload
    def read(self, max_bytes: int) -> bytes | None: ...

    @overload
    def read(self, max_bytes: int, memory: memoryview) -> int | None: ...

    def read(self, max_bytes: int, memory: memoryview | None = None) -> bytes | int | None:
        """Up to ``max_bytes`` of what the peer sent; b"" after its close_notify.

        None while there is unread input means: look at the output first (rule 6), then go on.
        With ``memory``, which has that many bytes, they are put there and their number is
        returned: as SSLObject.read.

        Raises:
          TruncationError: the input has ended without close_notify.
          ssl.SSLError: the peer broke the protocol, or sent a fatal alert; or the input is torn.
        """
        if self.has_nothing_buffered:
            return self._read_records(max_bytes, memory) if self.has_ciphertext else None
        if self._unread:
            data = self._read_unread(max_bytes)
            if memory is None:
                return bytes(data)
            memory[: len(data)] = data
            return len(data)
        if self.failure is not None:
            raise without_frames(self.failure)
        if self._input_is_torn:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "input is missing: reading it was interrupted")
        if self.close_notify_received:
            return b"" if memory is None else 0
        if self.has_ciphertext or self._more_decrypted:
            received = self._read_records(max_bytes, memory)
            if received is not None or self.has_ciphertext:
                return received
        if not self._input_ended:
            return None
        if not self.https_compatible:
            self.check_end()
        return b"" if memory is None else 0

    def peek(self) -> bytes | None:
        """The next byte that ``read`` would give; it stays."""
        data = self.read(1)
        if data:
            self.put_back(data)
        return data

    def check_end(self) -> None:
        """Of input that is over.

        Raises:
          TruncationError: it has ended without close_notify.
        """
        if not self.close_notify_received:
            raise TruncationError(
                "the connection ended without close_notify: what was received may be incomplete"
            )

    def look(self) -> bool:
        """Decrypt some of what has come, to know what ``read`` would give. False if there is
        nothing to find out; else look at the output first (rule 6), then go on."""
        if not (self.has_nothing_buffered and self.has_ciphertext):
            return False
        try:
            data = self._read_records(RECORD_SIZE)
        except ssl.SSLError:
            return False  # it is kept as the failure
        if data:
            self.put_back(data)
        return True

    @property
    def has_input(self) -> bool:
        """True if ``read`` would give data, the end or an error now, as far as was looked."""
        return self.handshake_done and not self.has_nothing_buffered

    def tear_input(self) -> None:
        """An exception has left a call that may have read (rule 8)."""
        self._input_is_torn = True
        self._update()

    def put_back(self, data: bytes) -> None:
        """Have the next ``read`` give this again."""
        self._unread.insert(0, memoryview(data))
        self._update()

    def write(self, data: bytes | bytearray | memoryview) -> bool:
        """Encrypt all of ``data``. False if input is needed first.

        Raises:
          ssl.SSLError: as for ``read``.
        """
        outer = self._enter()
        try:
            while True:
                try:
                    self.object.write(data)
                except ssl.SSLWantReadError:
                    if not self._backlog:
                        return False
                    self._top_up()
                else:
                    return True
        except ssl.SSLError as error:
            raise self._fail(error) from None
        finally:
            self._leave(outer)

    def request_certificate(self) -> None:
        """Queue a request for the certificate of a TLS 1.3 client (rule 7).

        Raises:
          ssl.SSLError: see TlsInfo.verify_client_post_handshake.
        """
        outer = self._enter()
        try:
            self.object.verify_client_post_handshake()
            self.object.do_handshake()
        finally:
            self._leave(outer)

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
        self._notify()
        if self.has_ciphertext and not self.close_notify_sent and self.failure is None:
            self._save_unread()  # it may have the rest of the message
            self._notify()

    def _notify(self) -> None:
        before = len(self.output)
        outer = self._enter()
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
        finally:
            self._leave(outer)
        self.close_notify_sent = len(self.output) > before

    # Helpers

    @overload
    def _read_records(self, max_bytes: int) -> bytes | None: ...

    @overload
    def _read_records(self, max_bytes: int, memory: memoryview | None) -> bytes | int | None: ...

    def _read_records(self, max_bytes: int, memory: memoryview | None = None) -> bytes | int | None:
        """As many records as are there, in one piece. Parameters as ``read``."""
        outer = self._enter()
        try:
            pieces: list[bytes] = []
            left = max_bytes
            incoming, outgoing = self._bios.incoming, self._bios.outgoing
            backlog = self._backlog
            if len(backlog) == 1:
                incoming.write(backlog.pop())
            elif backlog:
                self._top_up()
            size = left if left < RECORD_SIZE else RECORD_SIZE
            while True:
                try:
                    if memory is None:
                        data = self.object.read(size)
                        taken = len(data)
                    else:
                        with memory[max_bytes - left :] as rest:
                            taken = self.object.read(size, rest)  # type: ignore[assignment]
                except ssl.SSLWantReadError:
                    self._more_decrypted = False
                    if not backlog or outgoing.pending:
                        break
                    self._top_up()
                    continue
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
                left -= taken
                if backlog and left and not outgoing.pending:
                    self._top_up()
                is_all = not (self._more_decrypted or incoming.pending)
                if memory is None:
                    if is_all and not pieces:
                        return data
                    pieces.append(data)
                if is_all or not left:
                    break
                size = left if left < RECORD_SIZE else RECORD_SIZE
            self._update()
            if left == max_bytes and not self.close_notify_received:
                return None
            return b"".join(pieces) if memory is None else max_bytes - left
        finally:
            self._leave(outer)

    def _shake_hands(self) -> None:
        while True:
            self._top_up()
            try:
                self.object.do_handshake()
            except ssl.SSLWantReadError:
                if not self._backlog:
                    raise
            else:
                return

    # Rule 5

    def _enter(self) -> TlsSession | None:
        """Have the thread's BIOs for a call. Returns whose call this interrupts."""
        bios = self._bios
        if bios.thread != get_ident():
            raise RuntimeError("a TLS session may be used only in the thread that made it")
        outer = bios.user
        if outer is not None:
            outer._leave(None)
        if bios.holder is not None and bios.holder is not self:
            bios.holder._give_up_bio()
        bios.user = self
        return outer

    def _leave(self, outer: TlsSession | None) -> None:
        bios = self._bios
        if output := bios.outgoing.read():
            self.output.append(output)
        if bios.incoming.pending:
            bios.holder = self
            if outer is not None:
                self._give_up_bio()
        else:
            bios.holder = None
            self.has_ciphertext = bool(self._backlog)
        bios.user = outer

    def _may_wait_in_bio(self, size: int) -> bool:
        bios = self._bios
        return (
            not self._backlog
            and (bios.holder is self or (bios.holder is None and bios.user is None))
            and bios.thread == get_ident()
            and bios.incoming.pending + size <= MOST_WAITING
        )

    def _give_up_bio(self) -> None:
        """Another session needs it."""
        if self._bios.holder is self:
            self._backlog.insert(0, self._bios.incoming.read())
            self._bios.holder = None

    def _top_up(self) -> None:
        """Have a whole record in OpenSSL's input, if there is one."""
        backlog, incoming = self._backlog, self._bios.incoming
        while backlog and incoming.pending < LARGEST_RECORD:
            incoming.write(backlog.pop(0))

    def _read_unread(self, max_bytes: int) -> memoryview:
        data = self._unread.pop(0)
        if len(data) > max_bytes:
            self._unread.insert(0, data[max_bytes:])
        self._update()
        return data[:max_bytes]

    def _save_unread(self) -> None:
        while not (self.close_notify_received or self._input_is_torn) and (
            self.has_ciphertext or self._more_decrypted
        ):
            try:
                data = self._read_records(sys.maxsize)
            except ssl.SSLError:
                return  # it is kept as the failure
            if data:
                self._unread.append(memoryview(data))
                self._update()

    def _fail(self, error: ssl.SSLError) -> ssl.SSLError:
        self.failure = without_frames(error)
        self._update()
        return error

    def _update(self) -> None:
        self.has_nothing_buffered = not (
            self._unread
            or self._more_decrypted
            or self._input_ended
            or self._input_is_torn
            or self.close_notify_received
            or self.failure is not None
            or not self.handshake_done
        )


def _unexpected_eof(when: str) -> ssl.SSLEOFError:
    """What OpenSSL would have raised, had it been told of the end (rule 1)."""
    error = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, f"the peer ended the connection {when}")
    error.library, error.reason = "SSL", "UNEXPECTED_EOF_WHILE_READING"
    return error
