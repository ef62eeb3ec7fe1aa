"""nginx, configured to do as the others do."""

from __future__ import annotations

from .become_nginx import become_nginx
from .start import parse_arguments

#: Sessions and tickets are as with Python's ssl: no cache, and so many tickets.
TLS = """
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_conf_command NumTickets {tickets};
"""

arguments = parse_arguments()
become_nginx(arguments, "ssl", TLS.format(**vars(arguments)))
