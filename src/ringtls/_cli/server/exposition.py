"""Figures in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .metrics import Metrics

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(metrics: Metrics) -> bytes:
    """All that there are; of a family with labels, those that were counted."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(metrics))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for family in self._metrics.families:
            kind = GaugeMetricFamily if family.is_gauge else CounterMetricFamily
            metric = kind(family.name, family.text, labels=family.labels)
            for values, total in self._metrics.totals(family):
                if total or not family.labels:
                    metric.add_metric(values, total)
            yield metric
