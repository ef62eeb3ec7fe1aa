"""What all servers of the command line share; a command adds what it does with a connection.

A command derives from Service, gives its parser ``add_options``, and calls ``run_server``. It has
then: listening (addresses, sockets that are inherited), workers under a supervisor, certificates
and their reload, the drain, limits for peers, the log.
"""

from ringtls._accepting import SHORTAGES

from .access import is_logging, log_request
from .command import run_server
from .connections import Connection, Cut, Wait
from .errors import StartError
from .handling import limit_end
from .metrics import Metrics
from .options import add_options, seconds
from .service import Service

__all__ = [
    "SHORTAGES",
    "Connection",
    "Cut",
    "Metrics",
    "Service",
    "StartError",
    "Wait",
    "add_options",
    "is_logging",
    "limit_end",
    "log_request",
    "run_server",
    "seconds",
]
