"""What carries TLS' bytes: a socket on the ring, or any trio stream.

The modules, by what they are about:

    a socket          ring, owned_socket
    any stream        stream, carriers
    both              base
"""
