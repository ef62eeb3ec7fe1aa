"""What is known of a TLS connection, in ssl's own words: the same for every kind of stream."""

from __future__ import annotations

import io
import ssl
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from .closing import check_farewell, checked_timeout
from .uncopyable import Uncopyable

if TYPE_CHECKING:
    from .._outcome import CloseOutcome
    from .closing import Closing, Farewell
    from .session import TlsSession

__all__ = ["TlsInfo"]


class _Inquiry(ssl.SSLObject):
    """A connection's SSLObject for those who ask, and do no I/O: what OpenSSL reads and writes is
    in BIOs that all connections of the thread share (rule 5 of session.py). It equals the object
    that an SNI callback is given."""

    __slots__ = ("_connection",)

    _connection: ssl.SSLObject

    @classmethod
    def of(cls, connection: ssl.SSLObject) -> _Inquiry:
        inquiry = cls.__new__(cls)
        inquiry.__dict__ = connection.__dict__
        inquiry._connection = connection
        return inquiry

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Inquiry):
            return self._connection is other._connection
        return self._connection is other

    def __hash__(self) -> int:
        return hash(self._connection)

    def _refuse(self, *arguments: object, **options: object) -> NoReturn:
        raise io.UnsupportedOperation(
            "ssl_object is for questions: read, write, shake hands and unwrap by the stream itself"
        )

    read = write = do_handshake = unwrap = verify_client_post_handshake = _refuse


class TlsInfo(Uncopyable):
    """The part of a TLS stream that does no I/O."""

    _session: TlsSession
    _closing: Closing

    def _check_unused(self) -> None:
        """Raise if nothing can be put upon it."""
        raise NotImplementedError

    @property
    def close_outcome(self) -> CloseOutcome | None:
        """How the connection ended; None until that is known."""
        return self._closing.outcome

    @property
    def shutdown_timeout(self) -> float:
        """Seconds that the end may take.

        Raises:
          TypeError, ValueError: when it is set: it is negative or not a number.
        """
        return self._closing.timeout

    @shutdown_timeout.setter
    def shutdown_timeout(self, seconds: float) -> None:
        self._closing.timeout = checked_timeout(seconds)

    @property
    def reset_on_error(self) -> bool:
        """Whether an exception that leaves the stream breaks the connection off."""
        return self._closing.reset_on_error

    @reset_on_error.setter
    def reset_on_error(self, value: bool) -> None:
        self._closing.reset_on_error = value

    @property
    def farewell(self) -> Farewell:
        """Last words: sent before close_notify on every orderly end, however it comes, once.

        Bytes, or a function that returns them when the end begins; 16 KiB at most. They are not
        sent before the handshake is complete, after ``send_eof``, when the connection is broken
        off, or if only a part of what was given to the last ``send_all`` was accepted: they would
        land inside of another message. If the function raises, or returns what can't be sent,
        that is logged, and the end goes on without them. It must not refer to the stream, which
        could not be noticed as lost then. WebSocket has such words (Close, RFC 6455, section
        5.5.1), HTTP/2 (GOAWAY, RFC 9113, section 6.8) and SMTP (QUIT).

        Raises:
          TypeError: when it is set: it is neither bytes nor a function.
          ValueError: when it is set: more than 16 KiB.
        """
        return self._closing.farewell

    @farewell.setter
    def farewell(self, words: Farewell) -> None:
        if words is not None and not callable(words):
            check_farewell(words)
        self._closing.farewell = words

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """For code that asks ssl itself. To read, write, shake hands and unwrap is the stream's:
        those methods of this object raise io.UnsupportedOperation."""
        return _Inquiry.of(self._session.object)

    _ssl_object = ssl_object  # trio.SSLStream's, which others use for want of a public one

    @property
    def context(self) -> ssl.SSLContext:
        """The SSLContext. Set another before the handshake, or in an SNI callback, to present its
        certificates: see ssl.SSLSocket.context."""
        return self._session.object.context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        self._session.object.context = context

    @property
    def server_side(self) -> bool:
        """True for the side that has the certificate."""
        return self._session.object.server_side

    @property
    def server_hostname(self) -> str | None:
        """The name that the server's certificate must have; None where none was given."""
        return self._session.object.server_hostname

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session, to be resumed by another connection (set it there before the handshake)."""
        return self._session.object.session

    @session.setter
    def session(self, session: ssl.SSLSession | None) -> None:
        self._session.object.session = session

    def pending(self) -> int:
        """How many bytes a receive would return without looking for more that has come: 0 does not
        mean that it would wait. See ssl.SSLSocket.pending."""
        return self._session.pending

    @property
    def session_reused(self) -> bool | None:
        """Whether the handshake resumed a session.

        Raises:
          trio.NeedHandshakeError: there was no handshake yet.
        """
        return self._after_handshake("session_reused").session_reused

    def selected_alpn_protocol(self) -> str | None:
        """See ssl.SSLSocket.selected_alpn_protocol; before the handshake
        trio.NeedHandshakeError."""
        return self._after_handshake("selected_alpn_protocol").selected_alpn_protocol()

    def getpeercert(self, binary_form: bool = False) -> Any:
        """See ssl.SSLSocket.getpeercert; before the handshake trio.NeedHandshakeError."""
        return self._after_handshake("getpeercert").getpeercert(binary_form)

    def cipher(self) -> tuple[str, str, int] | None:
        """See ssl.SSLSocket.cipher; before the handshake trio.NeedHandshakeError."""
        return self._after_handshake("cipher").cipher()

    def shared_ciphers(self) -> list[tuple[str, str, int]] | None:
        """See ssl.SSLSocket.shared_ciphers; before the handshake trio.NeedHandshakeError."""
        return self._after_handshake("shared_ciphers").shared_ciphers()

    def compression(self) -> str | None:
        """See ssl.SSLSocket.compression; before the handshake trio.NeedHandshakeError."""
        return self._after_handshake("compression").compression()

    def verify_client_post_handshake(self) -> None:
        """Ask a TLS 1.3 client for its certificate: see ssl.SSLSocket.

        The request goes out with the next ``send_all``, or at the end, and the certificate comes in
        with what is received after that (RFC 8446, section 4.6.2).

        Raises:
          ssl.SSLError: this is not a server, not TLS 1.3, or the client did not offer it.
          trio.NeedHandshakeError: there was no handshake yet.
          trio.ClosedResourceError: the stream was closed, or ``send_eof`` was called.
        """
        self._after_handshake("verify_client_post_handshake")
        if self._closing.started or self._session.close_notify_sent:
            raise trio.ClosedResourceError("can't ask for a certificate: nothing more is sent")
        self._session.request_certificate()

    def version(self) -> str | None:
        """See ssl.SSLSocket.version; before the handshake trio.NeedHandshakeError."""
        return self._after_handshake("version").version()

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """See ssl.SSLSocket.get_channel_binding; before the handshake trio.NeedHandshakeError."""
        return self._after_handshake("get_channel_binding").get_channel_binding(cb_type)

    def _after_handshake(self, name: str) -> ssl.SSLObject:
        if not self._session.handshake_done:
            raise trio.NeedHandshakeError(f"call do_handshake() before {name}")
        return self._session.object
