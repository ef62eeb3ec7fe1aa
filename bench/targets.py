"""What ringtls is to reach, next to the others in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TARGETS", "Medians", "Outcome", "Target", "outcomes"]

RINGTLS = "ringtls"

#: Medians by work, candidate and metric.
Medians = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Target:
    """The most that a ratio may be.

    Attributes:
      work, metric: what is compared: ringtls's figure is divided by another's.
      of: the candidate whose figure is divided.
      against: the candidate whose figure that is; without one, the figure itself is the ratio, in
        seconds or bytes.
      against_work: the work whose figure that is, if it is another.
    """

    work: str
    metric: str
    against: str
    at_most: float
    against_work: str = ""
    of: str = RINGTLS

    def ratio(self, medians: Medians) -> float | None:
        """The ratio, if what it needs was measured."""
        try:
            own = medians[self.work][self.of][self.metric]
            if not self.against:
                return own
            return own / medians[self.against_work or self.work][self.against][self.metric]
        except KeyError:
            return None


@dataclass(frozen=True)
class Outcome:
    target: Target
    ratio: float

    @property
    def reached(self) -> bool:
        return self.ratio <= self.target.at_most


TRIO = "trio"
UVLOOP = "uvloop_streams"
NGINX = "nginx"
SERVE = "ringtls_serve"
PROXY = "ringtls_proxy"
HITCH = "hitch"
STUNNEL = "stunnel"
EPOLL = "ringtls_epoll"

TARGETS = (
    Target("keep-alive-1", "cpu_per_request", TRIO, 0.75),
    Target("keep-alive-1", "cpu_per_request", UVLOOP, 1.1),
    Target("keep-alive-1", "p50", TRIO, 0.9),
    Target("keep-alive-1", "p50", UVLOOP, 1.0),
    Target("keep-alive-64", "cpu_per_request", TRIO, 0.35),
    Target("keep-alive-64", "cpu_per_request", UVLOOP, 1.0),
    Target("keep-alive-64", "cpu_per_request", TRIO, 0.6, of=EPOLL),
    Target("keep-alive-64", "cpu_per_request", NGINX, 1.25),
    Target("keep-alive-512", "cpu_per_request", TRIO, 0.30),
    Target("keep-alive-512", "cpu_per_request", UVLOOP, 1.0),
    Target("keep-alive-4096", "cpu_per_request", RINGTLS, 1.3, against_work="keep-alive-64"),
    Target("handshakes", "cpu_per_request", TRIO, 0.75),
    Target("handshakes", "cpu_per_request", UVLOOP, 0.95),
    Target("handshakes", "cpu_per_request", NGINX, 1.2),
    Target("bulk-down", "cpu_per_megabyte", TRIO, 0.75),
    Target("bulk-down", "cpu_per_megabyte", UVLOOP, 1.0),
    Target("bulk-down", "cpu_per_megabyte", NGINX, 0.6),
    Target("bulk-up", "cpu_per_megabyte", TRIO, 0.55),
    Target("bulk-up", "cpu_per_megabyte", UVLOOP, 0.9),
    Target("bulk-up", "cpu_per_megabyte", NGINX, 1.0),
    Target("idle", "memory_per_connection", TRIO, 0.9),
    Target("idle", "memory_per_connection", UVLOOP, 0.45),
    Target("serve-small", "cpu_per_request", NGINX, 2.0, of=SERVE),
    Target("serve-small", "p99", NGINX, 2.0, of=SERVE),
    Target("serve-100k", "cpu_per_request", NGINX, 1.3, of=SERVE),
    Target("serve-10m", "cpu_per_request", NGINX, 0.8, of=SERVE),
    Target("system-calls", "system_calls_per_request", "", 0.3),
    Target("proxy-keep-alive-64", "cpu_per_request", HITCH, 1.25, of=PROXY),
    Target("proxy-keep-alive-64", "cpu_per_request", STUNNEL, 0.75, of=PROXY),
    Target("proxy-churn", "cpu_per_request", HITCH, 1.6, of=PROXY),
    Target("proxy-bulk-down", "cpu_per_megabyte", HITCH, 1.1, of=PROXY),
    Target("proxy-bulk-up", "cpu_per_megabyte", HITCH, 1.1, of=PROXY),
    Target("proxy-idle", "memory_per_connection", "", 60 * 1024, of=PROXY),
)


def outcomes(medians: Medians) -> list[Outcome]:
    """Of the targets whose figures are there."""
    ratios = ((target, target.ratio(medians)) for target in TARGETS)
    return [Outcome(target, ratio) for target, ratio in ratios if ratio is not None]
