"""Streams: TLS as a function of bytes, how a connection ends, and what the user holds.

The modules, by what they are about:

    what users hold   tls, tls_listener, socket, socket_listener, operation; relay is a function
    TLS               session, tls_info, handshakes, hostnames
    ends              closing, broken_off; leaks
    what is below     below, trio_socket, self_connection
    relays            relay_directions, relay_sides, relay_ends
    accepting         acceptor
    for all           conflict, uncopyable
"""
