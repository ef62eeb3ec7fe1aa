"""What all servers of the command line share; a command adds what it does with a connection.

A command derives from Service, gives its parser ``add_options``, and calls ``run_server``. Its
modules, by what they are about:

    what a command adds   service
    the start             options, command, listening, errors
    processes             serving; for --workers supervisor, workers, child
    connections           connections, handling, timeouts, peers
    certificates          credentials, names, dates; of clients identities
    SIGHUP                reloading; for --workers reading
    what is told          logs, access, notify; for --metrics metrics, figures, observation,
                          exposition
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
