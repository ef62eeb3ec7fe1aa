"""The codes, and the names that they are about."""

from __future__ import annotations

import enum

__all__ = [
    "CLOSERS",
    "EXPECTING",
    "HARMLESS",
    "LISTENERS",
    "MAKERS",
    "RULES",
    "STREAMS",
    "TYPES",
    "Kind",
]

RULES = {
    "RTL101": "this {kind} is never closed: enter it with 'async with'",
    "RTL102": "'with' can't close a {kind}: use 'async with'",
    "RTL103": "aclose_forcefully() ends a {kind} like aclose(): "
    "to reset the connection there is close_unclean()",
    "RTL104": "this operation on a {kind} is discarded, and with it its result: keep it",
    "RTL105": "this {kind} stays open if something raises before it is closed: "
    "use 'async with', or close it in 'finally'",
}


class Kind(enum.Enum):
    """What an expression is known to be."""

    SOCKET_STREAM = "SocketStream"
    TLS_STREAM = "TlsStream"
    SOCKET_LISTENER = "SocketListener"
    TLS_LISTENER = "TlsListener"
    TLS_LISTENERS = "list of TlsListener"


STREAMS = {Kind.SOCKET_STREAM, Kind.TLS_STREAM}

#: What accept() of a listener makes.
LISTENERS = {Kind.SOCKET_LISTENER: Kind.SOCKET_STREAM, Kind.TLS_LISTENER: Kind.TLS_STREAM}

#: Classes, as constructors and in annotations.
TYPES = {
    "ringtls.SocketListener": Kind.SOCKET_LISTENER,
    "ringtls.SocketStream": Kind.SOCKET_STREAM,
    "ringtls.TlsListener": Kind.TLS_LISTENER,
    "ringtls.TlsStream": Kind.TLS_STREAM,
}

#: What makes something when it is called, and awaited if it has to be.
MAKERS = {
    **{name: (kind, False) for name, kind in TYPES.items()},
    "ringtls.open_tcp_stream": (Kind.SOCKET_STREAM, True),
    "ringtls.open_tls_over_tcp_listeners": (Kind.TLS_LISTENERS, True),
    "ringtls.open_tls_over_tcp_stream": (Kind.TLS_STREAM, True),
}

#: Methods that close a stream. All but close_unclean are to be awaited.
CLOSERS = {"aclose", "close_unclean"}

#: Attributes of streams through which nothing is closed or handed on. Neither is it by the
#: operations that ``start_...`` methods begin.
HARMLESS = {
    "cipher",
    "close_outcome",
    "context",
    "do_handshake",
    "get_channel_binding",
    "getpeercert",
    "getsockopt",
    "receive_into",
    "receive_some",
    "selected_alpn_protocol",
    "send_all",
    "send_eof",
    "server_hostname",
    "server_side",
    "session",
    "session_reused",
    "setsockopt",
    "shutdown_timeout",
    "version",
    "wait_send_all_might_not_block",
    "wait_sent",
}

#: Context managers in which a call is meant to fail, or a stream to be dropped.
EXPECTING = {
    "RaisesExc",
    "RaisesGroup",
    "assertRaises",
    "assertRaisesRegex",
    "assertWarns",
    "assertWarnsRegex",
    "raises",
    "warns",
}
