"""What carries TLS' bytes: a socket on the ring, or any trio stream."""
