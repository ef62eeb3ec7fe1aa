"""The command ``ringtls``, also as ``python -m ringtls``."""

import signal
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line of this process; returns the exit status.

    SIGINT ends it as it does other programs: without a traceback, and by the signal itself, which
    a shell has to know of. Amid imports a KeyboardInterrupt would also be lost now and then.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from . import _cli

    return _cli.main()


if __name__ == "__main__":
    sys.exit(main())
