"""A TLS terminator, configured as in ``ringtls demo --proxy``, which this program becomes.

What its TLS is like, OpenSSL takes from a configuration that all terminators are given
(config(5ssl), "SSL Configuration"): not each has an option for the number of tickets.
"""

from __future__ import annotations

import os

from ringtls._cli.demo.proxy.peers import bound_socket
from ringtls._cli.demo.proxy.terminators import TERMINATORS, Setting

from .start import announce, parse_arguments

#: Files that a terminator may have open besides connections.
OTHER_FILES = 200

OPENSSL = """
openssl_conf = all
[all]
ssl_conf = applications
[applications]
system_default = tls
[tls]
MinProtocol = TLSv1.3
NumTickets = {tickets}
"""


def main() -> None:
    arguments = parse_arguments()
    [terminator] = (each for each in TERMINATORS if each.name == arguments.terminator)
    both = arguments.directory / "both.pem"
    both.touch(0o600)
    both.write_bytes(arguments.certificate.read_bytes() + arguments.key.read_bytes())
    openssl = arguments.directory / "openssl.cnf"
    openssl.write_text(OPENSSL.format(tickets=arguments.tickets))
    os.environ["OPENSSL_CONF"] = str(openssl)
    if arguments.engine:
        os.environ["RINGTLS_ENGINE"] = arguments.engine
    bound = bound_socket()  # the port stays the terminator's
    bound.set_inheritable(True)
    port = bound.getsockname()[1]
    command = terminator.command(
        Setting(
            arguments.directory,
            arguments.certificate,
            arguments.key,
            both,
            port,
            arguments.backend_port,
            os.sysconf("SC_OPEN_MAX") - OTHER_FILES,
        )
    )
    announce(port)
    os.execvp(command[0], command)


main()
