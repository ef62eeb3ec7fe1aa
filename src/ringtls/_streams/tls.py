"""TlsStream: a task's view of a TLS connection.

Rules:

1. A call on the session (TlsSession) and the hand-over of what it put out to the transport
   happen with no await between them. So records leave in the order in which they were
   encrypted, whichever tasks made them, and no lock is needed.
2. Handing over never blocks. A sender waits for room before it encrypts: if it is cancelled
   there, nothing of that piece was sent, and the stream stays usable.
3. The transport feeds the session on its own. A reader waits until input has come, and asks the
   session again.
4. Closing runs the end. It outlives this object.
5. Reading makes OpenSSL answer: key updates, refused renegotiations. What it answers is handed
   over at once, but a peer that takes in nothing must not have it answer for ever. So once
   ANSWER_LIMIT bytes of answers came on top of HIGH_WATER unsent ones, reading waits for room.
   Data alone never holds a reader back: the peer may not read before it has been read from.
   A look for input (``input_pending``) goes no further then, and receives no more than
   INPUT_LIMIT bytes beforehand.
6. Where a handshake ends with the peer's message (a TLS 1.3 server's does: session, rule 4), that
   is acknowledged at once. What the peer says next is small, too, and without TCP_NODELAY it waits
   for that: 40 ms, as the kernel's own acknowledgement waits for something to go with.
7. A server's stream receives from its creation on, because the client speaks first: mostly its
   ClientHello is there when the task begins, and need not be waited for.
8. A KeyboardInterrupt comes out where the task would wait, and not between two steps that
   belong together.

Nothing here awaits anything but the transport and its driver.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Generic, NoReturn, final

import trio
from trio.lowlevel import enable_ki_protection

from .._errors import TruncationError
from .._statistics import reason_of
from .._transports.base import ANSWER_LIMIT, HIGH_WATER, INPUT_LIMIT, RECEIVE_SIZE
from .below import give_back, take_over
from .closing import SHUTDOWN_TIMEOUT, checked_timeout
from .conflict import ConflictDetector
from .hostnames import reference_name
from .session import TlsSession
from .socket import SocketStream, checked_max_bytes, writable_bytes
from .tls_info import TlsInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer, TypeVar

    from .._interfaces import Transport
    from .closing import Closing

    T = TypeVar("T")
    #: What is below TLS; a plain TlsStream is one over a SocketStream.
    StreamT = TypeVar("StreamT", bound=trio.abc.Stream, default=SocketStream)
else:
    from typing import TypeVar

    StreamT = TypeVar("StreamT", bound=trio.abc.Stream)

__all__ = ["TlsStream"]

#: Plaintext that is encrypted in one piece.
PIECE = 256 * 1024


@final
class TlsStream(TlsInfo, trio.abc.HalfCloseableStream, Generic[StreamT]):
    """A TLS connection that always ends with close_notify.

    Like trio.SSLStream, but for its end: leaving ``async with stream``, or ``aclose()``, sends
    all that ``send_all`` accepted, close_notify and FIN, under cancellation too. To break a
    connection off there is ``close_unclean()``. A call that is cancelled leaves the stream
    usable. A stream belongs to the trio run that made it: in another thread, or in a forked child,
    a call that sends, receives or ends is a RuntimeError, and nothing has happened.

    Args:
      transport_stream: the connection, any stream of trio's interface; it belongs to this
        object from now on. The best is a ringtls.SocketStream. The connection of a
        trio.SocketStream is put on the ring, too, until ``unwrap()``: its ``socket`` meanwhile
        is for options and addresses. Others do without io_uring.
      ssl_context: as for trio.SSLStream. Options that hide truncation have no effect.
      server_hostname: the name that the server's certificate must have.
      server_side: true for the side that has the certificate.
      https_compatible: take an end of the connection without close_notify for an end, as much
        of the web demands. Our own close_notify is sent all the same.
      shutdown_timeout: seconds that the end may take; then the connection is reset. May be
        set later.
      reset_on_error: a connection that is left by an exception, a cancellation included, or
        that is lost, is broken off: what was accepted is delivered, then it is reset, without
        close_notify. So the peer can't take half an answer for a whole one. May be set later.
      initial_input: what was received on ``transport_stream`` before, and belongs to TLS: behind a
        PROXY header, say. (``SocketStream.peek`` looks without receiving.)

    Raises:
      TypeError: among others, ``initial_input`` is no bytes.
      ValueError, ssl.SSLError: the context and the names do not fit together; a negative
        ``shutdown_timeout``; another TlsStream has the connection.
      trio.ClosedResourceError: ``transport_stream`` was closed, or its ``send_eof`` was called.
        (Of other classes than SocketStream, trio's or ours, and TlsStream that is not known.)
      RuntimeError: called outside of ``trio.run``, or ``transport_stream`` is another thread's.
    """

    _is_owner = False

    @enable_ki_protection
    def __init__(
        self,
        transport_stream: StreamT,
        ssl_context: ssl.SSLContext,
        *,
        server_hostname: str | bytes | None = None,
        server_side: bool = False,
        https_compatible: bool = False,
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
        reset_on_error: bool = False,
        initial_input: bytes | bytearray | memoryview = b"",
    ) -> None:
        if not isinstance(transport_stream, (SocketStream, trio.abc.Stream)):  # ABCs are slow
            raise TypeError(f"TlsStream needs a trio.abc.Stream, not {transport_stream!r}")
        self._session = TlsSession(
            ssl_context,
            server_side=server_side,
            server_hostname=None if server_hostname is None else reference_name(server_hostname),
            https_compatible=https_compatible,
        )
        early = memoryview(initial_input).cast("B")
        if early:
            self._session.feed(early)
        shutdown_timeout = checked_timeout(shutdown_timeout)
        self._transport, self._closing = take_over(transport_stream)
        self._transport_stream: StreamT | None = transport_stream
        self._driver = self._transport.driver
        self._transport.attach(self._session.feed, self._session.feed_end)
        self._closing.attach_session(self._session, shutdown_timeout)
        self._closing.reset_on_error = reset_on_error
        self._unwrapped = False
        self._handshake_failed = False
        self._sending = ConflictDetector("another task is sending on this TlsStream")
        self._receiving = ConflictDetector("another task is receiving from this TlsStream")
        self._is_owner = True
        if server_side:
            self._transport.expect_input()

    # Data

    @enable_ki_protection
    async def do_handshake(self) -> None:
        """Shake hands, if that has not happened yet. The other methods do it where needed.

        If this is cancelled it can be called again, and goes on where it was.

        Raises:
          trio.BrokenResourceError: it failed; the cause is the ssl.SSLError.
          trio.ClosedResourceError: the stream was closed or unwrapped, before or during the call.
        """
        self._check_usable()
        await self._driver.checkpoint_if_cancelled()
        if not await self._ensure_handshake():
            await self._driver.cancel_shielded_checkpoint()

    @enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Accept all of ``data`` for sending, in order.

        Returns when it is accepted: it is sent in the background, and before the connection
        ends. Waits while too much is unsent. If this is cancelled, what was accepted is some
        part of ``data`` from its start (all or nothing, up to 256 KiB).

        Raises:
          TypeError: ``data`` is no bytes, or not contiguous. Nothing has happened.
          trio.BrokenResourceError: an earlier send, or TLS, has failed: nothing more can be sent.
          trio.ClosedResourceError: the stream was closed or unwrapped, or ``send_eof`` was called.
          trio.BusyResourceError: another task is sending.
        """
        sending = self._sending
        if sending.busy:
            sending.refuse()
        sending.busy = True
        views: list[memoryview] = []
        try:
            session, transport, driver = self._session, self._transport, self._driver
            self._check_sendable()
            pieces: Sequence[bytes | memoryview]
            if type(data) is bytes and 0 < len(data) <= PIECE:
                pieces = (data,)
            else:
                pieces = views = _pieces(data)
            await driver.checkpoint_if_cancelled()
            if not session.handshake_done:
                await self._ensure_handshake(sends_next=True)
            for piece in pieces:
                if transport.unsent >= HIGH_WATER:
                    await transport.wait_sent()
                    transport.answered = 0
                    self._check_sendable()
                while True:
                    if self._write(piece):
                        break
                    await self._wait_for_input()
                    self._check_sendable()
                self._closing.torn = piece is not pieces[-1]
            await driver.cancel_shielded_checkpoint()
        finally:
            sending.busy = False
            for view in views:  # an error's traceback must not keep the caller's memory exported
                view.release()

    @enable_ki_protection
    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Accept all of ``data`` for sending, as ``send_all`` does, but at once and without a
        checkpoint: for senders of many small pieces, who wait in ``wait_sent`` now and then.

        Returns:
          How many bytes are unsent, at most: what the kernel, or the stream below, does not have.

        Raises:
          trio.WouldBlock: too much is unsent until ``wait_sent`` has returned, or there is a
            handshake to be made, which ``send_all`` does. Nothing was accepted.
          ValueError: more than 256 KiB.
          trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError: as for
            ``send_all``.
        """
        if self._sending.busy:
            self._sending.refuse()
        self._check_sendable()
        transport = self._transport
        with memoryview(data).cast("B") as piece:
            if len(piece) > PIECE:
                raise ValueError(f"send_nowait() accepts no more than {PIECE} bytes at once")
            if not self._session.handshake_done or transport.unsent >= HIGH_WATER:
                raise trio.WouldBlock
            if piece and not self._write(piece):
                raise trio.WouldBlock
        return transport.unsent

    @enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until less than 256 KiB is unsent, so that ``send_all`` accepts something at once.

        See trio.abc.SendStream. Nothing has happened if this is cancelled.

        Raises:
          trio.BrokenResourceError: an earlier send, or TLS, has failed.
          trio.ClosedResourceError: the stream was closed or unwrapped, or ``send_eof`` was called.
          trio.BusyResourceError: another task is sending.
        """
        with self._sending:
            self._check_sendable()
            await self._driver.checkpoint_if_cancelled()
            if not await self._transport.wait_sent():
                await self._driver.cancel_shielded_checkpoint()

    @enable_ki_protection
    async def wait_sent(self) -> None:
        """Wait until the kernel, or the stream below, has all that was accepted.

        Nothing is undone if this is cancelled.

        Raises:
          trio.BrokenResourceError: a send, or TLS, has failed.
          trio.ClosedResourceError: the stream was closed or unwrapped, before or during the call.
        """
        self._check_usable()
        await self._driver.checkpoint_if_cancelled()
        if not await self._transport.wait_sent(below=1):
            await self._driver.cancel_shielded_checkpoint()

    @enable_ki_protection
    async def wait_acknowledged(self) -> None:
        """Wait until the peer's TCP has acknowledged all that was accepted (tcp(7), SIOCOUTQ).

        A peer may be slower than the shutdown timeout allows. Whoever waits for this before closing
        knows that what was sent can't be lost any more to a reset. It does not mean that the peer's
        program has read it. Over a stream without a socket below it is ``wait_sent``. Nothing is
        undone if this is cancelled.

        Raises:
          trio.BrokenResourceError: a send, or TLS, has failed.
          trio.ClosedResourceError: the stream was closed or unwrapped, before or during the call.
        """
        self._check_usable()
        await self._driver.checkpoint_if_cancelled()
        await self._transport.wait_acknowledged()
        await self._driver.cancel_shielded_checkpoint()

    @enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive between 1 and ``max_bytes`` bytes (by default 64 KiB); b"" after the peer's
        close_notify.

        If this is cancelled, nothing was received, and nothing is lost.

        Raises:
          TypeError, ValueError: ``max_bytes`` is not a positive integer.
          TruncationError: the connection ended without close_notify.
          trio.BrokenResourceError: the connection broke, or TLS failed.
          trio.ClosedResourceError: the stream was closed or unwrapped, before or during the call.
          trio.BusyResourceError: another task is receiving.
        """
        most = RECEIVE_SIZE if max_bytes is None else checked_max_bytes(max_bytes)
        receiving = self._receiving
        if receiving.busy:
            receiving.refuse()
        has_read = False
        receiving.busy = True
        try:
            session, transport = self._session, self._transport
            self._driver.check_caller()
            if self._closing.started or self._unwrapped:
                self._check_open()
            if session.has_nothing_buffered and not session.has_ciphertext:
                await transport.receive()
                waited = True
            else:
                await self._driver.checkpoint_if_cancelled()
                waited = not session.handshake_done and await self._ensure_handshake(
                    for_reading=True
                )
            if transport.answered >= ANSWER_LIMIT:
                await self._wait_for_room()
            while True:
                has_read = True
                data = self._read(most)
                if data is not None:
                    break
                has_read = False
                await self._wait_for_input()
                waited = True
            if not waited:
                await self._driver.cancel_shielded_checkpoint()
            return data
        except trio.BrokenResourceError:
            raise
        except BaseException:
            if has_read:
                session.tear_input()
            raise
        finally:
            receiving.busy = False

    @property
    @enable_ki_protection
    def input_pending(self) -> bool:
        """True if a receive would return at once: with data, the end, or an error.

        For pools of connections: an idle one that the peer has ended, or has sent something on that
        nobody asked for, is of no more use. Looks at what has come, so that a session ticket alone
        is False; does not wait, and takes nothing. Over a stream that is not a socket it knows only
        what was received before.

        Raises:
          trio.ClosedResourceError: the stream was closed or unwrapped.
        """
        self._check_open()
        session, transport = self._session, self._transport
        no_more_comes = session.unread_input < INPUT_LIMIT and transport.look()
        while not transport.answers_too_much() and self._call_session(session.look):
            pass
        return session.has_input or no_more_comes

    @enable_ki_protection
    async def receive_into(self, buffer: Buffer, nbytes: int | None = None) -> int:
        """Receive into the caller's memory: OpenSSL puts there what it has decrypted.

        The memory can't be resized while this waits. If this is cancelled, nothing was received,
        and nothing is lost.

        Args:
          buffer: a bytearray, memoryview, mmap, array or the like; contiguous and writable.
          nbytes: how many bytes to receive at most, by default as many as fit.

        Returns:
          The number of bytes received, at the start of ``buffer``: all that has come, as far as
          it fits, and at least 1; 0 after the peer's close_notify. Beyond them the memory is not
          touched.

        Raises:
          TypeError, ValueError: the buffer can't be received into, or has no room.
          TruncationError: the connection ended without close_notify.
          trio.BrokenResourceError: the connection broke, or TLS failed.
          trio.ClosedResourceError: the stream was closed or unwrapped, before or during the call.
          trio.BusyResourceError: another task is receiving.
        """
        session, has_read = self._session, False
        try:
            with self._receiving, writable_bytes(buffer, nbytes) as memory:
                self._check_open()
                await self._driver.checkpoint_if_cancelled()
                waited = await self._ensure_handshake(for_reading=True)
                size = len(memory)
                if self._transport.answered >= ANSWER_LIMIT:
                    await self._wait_for_room()
                while True:
                    has_read = True
                    count = self._call_session(lambda: session.read(size, memory))
                    if count is not None:
                        break
                    has_read = False
                    await self._wait_for_input()
                    waited = True
                if not waited:
                    await self._driver.cancel_shielded_checkpoint()
                return count
        except trio.BrokenResourceError:
            raise
        except BaseException:
            if has_read:
                session.tear_input()
            raise

    @enable_ki_protection
    async def send_eof(self) -> None:
        """Send close_notify, and no FIN: the other direction goes on.

        Afterwards sending raises trio.ClosedResourceError. If this is cancelled, no close_notify
        was sent, and it can be called again.

        Raises:
          trio.BrokenResourceError: a send, or TLS, has failed; or a renegotiation is under way.
          trio.ClosedResourceError: the stream was closed or unwrapped, before or during the call.
          trio.BusyResourceError: another task is sending.
        """
        with self._sending:
            self._check_usable()
            await self._driver.checkpoint_if_cancelled()
            await self._ensure_handshake(sends_next=True)
            self._transport.check_sendable()
            self._call_session(self._close_output)
            self._check_usable()
            if not self._session.close_notify_sent:
                raise trio.BrokenResourceError("no close_notify is possible while renegotiating")
            await self._driver.cancel_shielded_checkpoint()

    @enable_ki_protection
    async def unwrap(self) -> tuple[StreamT, bytes]:
        """End TLS and keep the connection.

        Sends close_notify and waits for the peer's. Read to the end (b"") first if the peer may
        still be sending. If this is cancelled, our close_notify may have been sent; called again,
        it goes on where it was.

        Returns:
          The transport, and what came on it after the peer's close_notify.

        Raises:
          trio.BrokenResourceError: the connection broke, TLS failed, or the peer still sends data,
            which the next receive returns.
          trio.ClosedResourceError: the stream was closed or unwrapped, before or during the call.
          trio.BusyResourceError: another task is sending or receiving.
        """
        with self._receiving, self._sending:
            self._check_usable()
            await self._driver.checkpoint_if_cancelled()
            await self._ensure_handshake(sends_next=True)
            self._call_session(self._close_output)
            while True:
                data = self._call_session(self._session.peek)
                if data is not None:
                    break
                await self._receive_answer()
            if data:
                raise trio.BrokenResourceError("the peer sent data where unwrap() needs its end")
            self._session.check_end()
            if not await self._transport.wait_sent(below=1):
                await self._driver.cancel_shielded_checkpoint()
            await self._transport.detach()
            self._check_usable()
            assert self._transport_stream is not None
            give_back(self._transport_stream, self._transport, self._closing)
            transport_stream, self._transport_stream = self._transport_stream, None
            self._unwrapped = True
            self._is_owner = False
            return transport_stream, self._session.take_trailing_input()

    # The end

    @enable_ki_protection
    async def aclose(self, *, shutdown_timeout: float | None = None) -> None:
        """Send what is accepted, close_notify and FIN; wait until the kernel has them.

        Does not wait for the peer, but for its TCP to take in what is unsent: at most
        ``shutdown_timeout`` seconds (by default the stream's own). After that the connection is
        reset. Where ``transport_stream`` is no socket, it is closed when this returns; if it may
        have a socket below, the peer has up to a second to end first (else what it still sends
        could destroy our last bytes). How it ended is ``close_outcome``; no error is raised for it.

        Not a cancellation point: a cancellation comes out at the next checkpoint. So
        ``trio.aclose_forcefully(stream)`` is graceful too; ``close_unclean()`` is not.

        Raises:
          TypeError, ValueError: ``shutdown_timeout`` is no number, or negative. No end has begun.
        """
        await self._end(shutdown_timeout)

    @enable_ki_protection
    async def __aexit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if not self._closing.is_settled:
            await self._end(after_error=exc_type is not None)

    async def _end(self, seconds: float | None = None, *, after_error: bool = False) -> None:
        """Begin the end, unless that has happened, and wait for its outcome (Closing.start)."""
        if self._unwrapped:
            await self._driver.uncancellable_checkpoint()
            return
        self._closing.start(seconds, after_error=after_error)
        await self._closing.wait()

    @enable_ki_protection
    def close_unclean(self) -> None:
        """Reset the connection at once, without close_notify. Does not wait.

        The peer sees an error, and may lose what it has not read yet.
        """
        if not self._unwrapped:
            self._closing.abort()

    def __enter__(self) -> NoReturn:
        raise TypeError("use 'async with' with a TlsStream, not 'with'")

    def __exit__(self, *exc_info: object) -> None:
        raise AssertionError("__enter__ does not return")

    def __del__(self) -> None:
        if self._is_owner:
            self._closing.drop()

    @property
    def transport_stream(self) -> StreamT:
        """The stream below. None of its data methods may be used.

        Raises:
          trio.ClosedResourceError: this stream was unwrapped.
        """
        if self._transport_stream is None:
            raise trio.ClosedResourceError("this stream was unwrapped")
        return self._transport_stream

    def _release_to_relay(self) -> tuple[Transport, Closing, TlsSession]:
        """Hand the connection to a relay, which sees to its end from now on."""
        self._check_unused()
        self._is_owner = False
        return self._transport, self._closing, self._session

    # Helpers

    def _check_unused(self) -> None:
        with self._sending, self._receiving:
            self._check_sendable()
        if self._closing.is_below_another:
            raise ValueError("this stream is below another TlsStream already")

    def _check_open(self) -> None:
        self._driver.check_caller()
        if self._unwrapped:
            raise trio.ClosedResourceError("this stream was unwrapped")
        if self._closing.started:
            raise trio.ClosedResourceError("this stream was closed")

    def _check_usable(self) -> None:
        self._check_open()
        if self._session.failure is not None:
            raise _broken(self._session.failure)

    def _check_sendable(self) -> None:
        session, transport = self._session, self._transport
        self._driver.check_caller()
        if (
            self._closing.started
            or self._unwrapped
            or session.close_notify_sent
            or session.failure is not None
            or transport.error is not None
        ):
            self._check_usable()
            if session.close_notify_sent:
                raise trio.ClosedResourceError("can't send after send_eof()")
            transport.check_sendable()

    # Rule 1. An alert that a call left behind goes out as well.

    def _read(self, max_bytes: int) -> bytes | None:
        session = self._session
        try:
            return session.read(max_bytes)
        except ssl.SSLError as error:
            raise _broken(error) from error
        finally:
            if session.output:
                self._transport.answer(session.take_output())

    def _write(self, data: bytes | bytearray | memoryview) -> bool:
        session = self._session
        try:
            return session.write(data)
        except ssl.SSLError as error:
            raise _broken(error) from error
        finally:
            self._transport.enqueue(session.take_output())

    def _call_session(self, function: Callable[[], T]) -> T:
        try:
            return function()
        except ssl.SSLError as error:
            raise _broken(error) from error
        except TruncationError:
            raise
        except BaseException:
            self._session.tear_input()
            raise
        finally:
            if self._session.output:
                self._transport.answer(self._session.take_output())

    # Rule 5

    async def _wait_for_room(self) -> None:
        with suppress(trio.BrokenResourceError):  # what has come before it broke can be read
            await self._transport.wait_sent()
        self._transport.answered = 0

    async def _wait_for_input(self) -> None:
        """Wait until the session has something to go on with, and may."""
        if self._session.has_ciphertext:
            await self._driver.checkpoint()
            self._check_open()
        else:
            await self._transport.receive()
        if self._transport.answered >= ANSWER_LIMIT:
            await self._wait_for_room()

    async def _ensure_handshake(
        self, *, for_reading: bool = False, sends_next: bool = False
    ) -> bool:
        """True if that took a while. ``for_reading``: see TlsSession.handshake."""
        if self._session.handshake_done:
            return False
        session, waited = self._session, False
        try:
            while True:
                if session.handshake_done or self._shake_hands(for_reading):
                    break
                await self._receive_answer()
                waited = True
        except trio.BrokenResourceError as error:
            if not self._handshake_failed:
                self._handshake_failed = True
                self._driver.tally.handshake_failures[reason_of(error.__cause__)] += 1
            raise
        if not sends_next:
            self._acknowledge_handshake()
        return waited

    def _acknowledge_handshake(self) -> None:
        """Rule 6."""
        if not (self._session.has_last_word or self._session.has_ciphertext):
            self._transport.acknowledge()

    def _shake_hands(self, for_reading: bool) -> bool:
        session = self._session
        is_over = self._call_session(partial(session.handshake, for_reading=for_reading))
        if session.handshake_done:
            tls = session.object
            version, cipher = tls.version() or "", tls.cipher() or ("", "", 0)
            self._driver.tally.handshakes[version, cipher[0], bool(tls.session_reused)] += 1
        return is_over

    async def _receive_answer(self) -> None:
        """Wait for input that can come only in answer to what we have sent (rule C18)."""
        self._transport.check_sendable()
        await self._wait_for_input()
        self._check_usable()

    def _close_output(self) -> None:
        self._session.close_output(keep_unread=True)


def _pieces(data: bytes | bytearray | memoryview) -> list[memoryview]:
    view = memoryview(data).cast("B")
    return [view[start : start + PIECE] for start in range(0, len(view), PIECE)]


def _broken(error: ssl.SSLError) -> trio.BrokenResourceError:
    broken = trio.BrokenResourceError(f"TLS failed: {error}")
    broken.__cause__ = error
    return broken
