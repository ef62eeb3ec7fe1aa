"""Completion I/O: requests, the ring that owns them, handles. Knows no TLS and no event loop.

With readiness I/O (poll(2)) a program waits until a call would not block, and then makes it. With
completion I/O (io_uring(7)) it hands the kernel a request and a buffer, does something else, and is
told later that the request has completed. In between the kernel may write to the buffer at any
moment, also when nobody wants the result any more. Most rules in here follow from that.

The modules, by what they are about:

    the ring          ring, request, handle
    which engine      choice, opening, availability, extension
    event loops       wakeups, eventfd
    sockets           descriptors, address
"""
