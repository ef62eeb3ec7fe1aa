"""nginx without TLS, for terminators to be in front of it."""

from __future__ import annotations

from .become_nginx import become_nginx
from .start import parse_arguments

become_nginx(parse_arguments())
