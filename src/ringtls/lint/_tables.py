"""The codes, and the names that they are about."""

from __future__ import annotations

import enum

__all__ = [
    "ABORTERS",
    "BLOCKING_CLOSERS",
    "CALLERS",
    "CLOSERS",
    "DESTRUCTOR",
    "ENDERS",
    "EXPECTING",
    "HARMLESS",
    "HARMLESS_OF_DESTRUCTORS",
    "ITEMS",
    "KNOWN_BASES",
    "KNOWN_DECORATORS",
    "LISTENERS",
    "MADE_BY",
    "MAKERS",
    "RULES",
    "STARTERS",
    "TO_BE_CLOSED",
    "TYPES",
    "Kind",
]

RULES = {
    "RTL101": "this {kind} is never closed: enter it with '{entered_with}'",
    "RTL102": "'with' can't close {a_kind}: use 'async with'",
    "RTL103": "aclose_forcefully() ends {a_kind} like aclose(): "
    "to reset the connection there is close_unclean()",
    "RTL104": "this operation on {a_kind} is discarded, and with it its result: keep it",
    "RTL105": "this {kind} stays open if something raises before it is closed: "
    "use '{entered_with}', or close it in 'finally'",
    "RTL106": "this {kind} is lost when its variable is assigned anew or deleted: "
    "close it before, or use ringtls.replace()",
    "RTL107": "this {kind} is closed as soon as the task is started: "
    "have the task itself enter it with 'async with'",
    "RTL108": "'async with' can't close {a_kind}: use 'with'",
    "RTL109": "adestroy() is called by ringtls, once: call aclose()",
    "RTL110": "this farewell of {a_kind} is set after the last send: "
    "set it before, or an end that comes earlier goes without",
}


class Kind(enum.Enum):
    """What an expression is known to be."""

    SOCKET_STREAM = "SocketStream"
    TLS_STREAM = "TlsStream"
    SOCKET_LISTENER = "SocketListener"
    TLS_LISTENER = "TlsListener"
    SOCKET_LISTENERS = "list of SocketListener"
    TLS_LISTENERS = "list of TlsListener"
    BLOCKING_SOCKET_STREAM = "blocking SocketStream"
    BLOCKING_TLS_STREAM = "blocking TlsStream"
    BYTE_STREAM = "anyio ByteStream"
    DESTRUCTOR = "AsyncDestructor"

    @property
    def is_blocking(self) -> bool:
        return self in (Kind.BLOCKING_SOCKET_STREAM, Kind.BLOCKING_TLS_STREAM)

    @property
    def with_article(self) -> str:
        return f"{'an' if self.value[0] in 'Aa' else 'a'} {self.value}"

    @property
    def entered_with(self) -> str:
        return "with" if self.is_blocking else "async with"


TO_BE_CLOSED = {
    Kind.SOCKET_STREAM,
    Kind.TLS_STREAM,
    Kind.BLOCKING_SOCKET_STREAM,
    Kind.BLOCKING_TLS_STREAM,
    Kind.BYTE_STREAM,
    Kind.DESTRUCTOR,
}

#: What accept() of a listener makes.
LISTENERS = {Kind.SOCKET_LISTENER: Kind.SOCKET_STREAM, Kind.TLS_LISTENER: Kind.TLS_STREAM}

#: What a list has in it.
ITEMS = {Kind.SOCKET_LISTENERS: Kind.SOCKET_LISTENER, Kind.TLS_LISTENERS: Kind.TLS_LISTENER}

#: Classes, as constructors and in annotations.
TYPES = {
    "ringtls.SocketListener": Kind.SOCKET_LISTENER,
    "ringtls.SocketStream": Kind.SOCKET_STREAM,
    "ringtls.TlsListener": Kind.TLS_LISTENER,
    "ringtls.TlsStream": Kind.TLS_STREAM,
    "ringtls.anyio.ByteStream": Kind.BYTE_STREAM,
    "ringtls.blocking.SocketStream": Kind.BLOCKING_SOCKET_STREAM,
    "ringtls.blocking.TlsStream": Kind.BLOCKING_TLS_STREAM,
}

#: What makes something when it is called, and awaited if it has to be. But a ByteStream may be made
#: of a stream that somebody else closes.
MAKERS = {
    **{name: (kind, False) for name, kind in TYPES.items() if kind is not Kind.BYTE_STREAM},
    "ringtls.anyio.connect_tcp": (Kind.BYTE_STREAM, True),
    "ringtls.blocking.open_tls_over_tcp_stream": (Kind.BLOCKING_TLS_STREAM, False),
    "ringtls.open_tcp_listeners": (Kind.SOCKET_LISTENERS, True),
    "ringtls.open_tcp_stream": (Kind.SOCKET_STREAM, True),
    "ringtls.open_tls_over_tcp_listeners": (Kind.TLS_LISTENERS, True),
    "ringtls.open_tls_over_tcp_stream": (Kind.TLS_STREAM, True),
    "ringtls.open_unix_listeners": (Kind.SOCKET_LISTENERS, True),
    "ringtls.open_unix_socket": (Kind.SOCKET_STREAM, True),
}

#: The class whose subclasses a module may define.
DESTRUCTOR = "ringtls.AsyncDestructor"

#: Other bases and decorators of such a class that keep none of its values.
KNOWN_BASES = {"typing.Generic", "abc.ABC"}
KNOWN_DECORATORS = {"attrs.define", "attrs.frozen", "dataclasses.dataclass", "typing.final"}

#: Methods of such a class that are called when a value is made.
MADE_BY = (
    "__new__",
    "__init__",
    "__post_init__",
    "__attrs_pre_init__",
    "__attrs_post_init__",
    "__init_subclass__",
)

#: Methods that close something. All but close_unclean and those of blocking streams are to be
#: awaited.
CLOSERS = {"aclose", "close_unclean"}
BLOCKING_CLOSERS = {"close", "close_unclean"}

#: Functions that close the streams that they are passed, when they are awaited.
ENDERS = {"ringtls.aclose_all", "ringtls.relay"}

#: Attributes of streams through which nothing is closed or handed on. Neither is it by the
#: operations that ``start_...`` methods begin.
HARMLESS = {
    "cipher",
    "close_outcome",
    "compression",
    "context",
    "do_handshake",
    "farewell",
    "get_channel_binding",
    "getpeercert",
    "getsockopt",
    "input_pending",
    "peek",
    "pending",
    "receive",
    "receive_into",
    "receive_some",
    "selected_alpn_protocol",
    "send",
    "send_all",
    "send_eof",
    "server_hostname",
    "server_side",
    "session",
    "session_reused",
    "setsockopt",
    "shared_ciphers",
    "shutdown_timeout",
    "ssl_object",
    "timeout",
    "verify_client_post_handshake",
    "version",
    "wait_acknowledged",
    "wait_send_all_might_not_block",
    "wait_sent",
}

#: What every AsyncDestructor has besides.
HARMLESS_OF_DESTRUCTORS = {"check_open", "destroy_timeout"}

#: Methods of a nursery that call a function with what follows it, and a function that does.
STARTERS = {"start", "start_soon"}
CALLERS = {"ringtls.blocking.call"}

#: What closes a stream at once in trio and anyio.
ABORTERS = {"anyio.aclose_forcefully", "trio.aclose_forcefully"}

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
