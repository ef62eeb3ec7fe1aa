"""The public names, which ringtls itself hands out."""

from ._as_trio import register_as_trio
from ._combinators import aclose_all, must_complete, replace
from ._destructor import AsyncDestructor
from ._errors import RingUnavailableError, TruncationError
from ._highlevel import (
    open_tcp_listeners,
    open_tcp_stream,
    open_tls_over_tcp_listeners,
    open_tls_over_tcp_stream,
    open_unix_listeners,
    open_unix_socket,
    serve_tcp,
    serve_tls_over_tcp,
    statistics,
)
from ._outcome import CloseOutcome
from ._ownership import borrowed
from ._statistics import Statistics
from ._streams.operation import Operation
from ._streams.relay import relay
from ._streams.relay_ends import RelayDirection, RelayEnd, RelayOutcome
from ._streams.socket import SocketStream
from ._streams.socket_listener import SocketListener
from ._streams.tls import TlsStream
from ._streams.tls_listener import TlsListener

__all__ = [
    "AsyncDestructor",
    "CloseOutcome",
    "Operation",
    "RelayDirection",
    "RelayEnd",
    "RelayOutcome",
    "RingUnavailableError",
    "SocketListener",
    "SocketStream",
    "Statistics",
    "TlsListener",
    "TlsStream",
    "TruncationError",
    "aclose_all",
    "borrowed",
    "must_complete",
    "open_tcp_listeners",
    "open_tcp_stream",
    "open_tls_over_tcp_listeners",
    "open_tls_over_tcp_stream",
    "open_unix_listeners",
    "open_unix_socket",
    "register_as_trio",
    "relay",
    "replace",
    "serve_tcp",
    "serve_tls_over_tcp",
    "statistics",
]
