"""The streams of ringtls for plain threads: ``with`` instead of ``async with``, and no event loop.

    with ringtls.blocking.open_tls_over_tcp_stream("example.org", 443) as stream:
        stream.send_all(b"...")
        print(stream.receive_some())

What holds for all of them:

- A stream may be used in the thread that made it, and in no other.
- ``timeout`` is how many seconds one call may wait; None, the default, means as long as it takes.
  After that the call raises TimeoutError, and the stream stays usable. Closing is bounded by
  ``shutdown_timeout`` instead.
- Ctrl-C, like anything else that SIGINT's handler raises, comes out of a call where it waits, or at
  its end. A close does not wait any less for that. (What handlers of other signals raise comes out
  anywhere, as in all of Python, and where ringtls could not go on it resets the connections of the
  thread. Nor may such a handler use a TlsStream that the thread is using: OpenSSL can't be
  re-entered, and the connection breaks.)
- A close waits for no end of the peer's: its descriptor is closed when that has come, or after the
  shutdown timeout, by a later call in the same thread or at that thread's end.
- When a thread ends, and for the main thread at the interpreter's exit (in a process of
  multiprocessing: when its target has returned), its streams that are still open are closed, and
  all ends are waited for. Python kills a daemon thread at the interpreter's exit, and its streams
  with it.
- The exceptions are those of the asynchronous streams, trio's.
- Asynchronous code that was written for ringtls' streams, a protocol's client say, runs in a plain
  thread, too: see ``call``.
"""

from ._call import call
from ._streams import SocketStream, TlsStream, open_tls_over_tcp_stream, relay

__all__ = ["SocketStream", "TlsStream", "call", "open_tls_over_tcp_stream", "relay"]
