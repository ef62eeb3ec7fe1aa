"""Looks at how servers talk, so that what is unequal gets known."""

from __future__ import annotations

from collections.abc import Mapping

from ringtls._cli.certificates import Certificate

from .candidates import Candidate
from .client import ask, client_context
from .server import running

__all__ = ["differences", "probe"]

Traits = Mapping[str, object]


def probe(candidate: Candidate, certificate: Certificate, tickets: int) -> Traits:
    """What its connections are like.

    Raises:
      OSError, ServerError: it does not answer.
    """
    resumed = {}
    for given in (tickets, 0):
        with running(candidate, certificate, tickets=given) as server:
            context = client_context(server)
            first = ask(server, context)
            resumed[given] = ask(server, context, first.session).resumed
    return {
        "TLS version": first.version,
        "cipher suite": first.cipher,
        "size of the answer": first.size,
        f"resumption with {tickets} tickets": resumed[tickets],
        "resumption without tickets": resumed[0],
    }


def differences(traits: Mapping[str, Traits]) -> list[str]:
    """In words, the traits that not all candidates share.

    Args:
      traits: by candidate.
    """
    names = dict.fromkeys(name for known in traits.values() for name in known)
    found = []
    for name in names:
        values = {candidate: known.get(name) for candidate, known in traits.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{candidate} {value}" for candidate, value in values.items())
            found.append(f"Unequal: {name}: {listed}.")
    return found
