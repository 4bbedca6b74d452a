"""What a server counts, in Prometheus' text form.

Each replica counts for itself and gives its totals to one small actor, the board. Whichever replica
is asked for /metrics gets the sum from there, so that a scrape through a load balancer sees one
consistent service, and counters that don't fall when a replica ends.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

LATENCY = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram, in seconds."""
BATCH = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of the batch size histogram, in images."""
MAX_LABELS = 100
"""Predictions are counted by class up to this many classes: every class is a series."""
STALE_SECONDS = 10.0
"""A replica that hasn't reported for so long no longer counts as running."""


@dataclass
class Histogram:
    """Counts below rising bounds, the last one without a bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one value."""
        i = 0
        for bound in self.bounds:
            if value <= bound:
                break
            i += 1
        self.counts[i] += 1
        self.sum += value


@dataclass
class Totals:
    """Everything that one replica has counted; plain values, so that it travels.

    Attributes:
        requests: (path, code) -> count; paths that the API doesn't have are one.
        images: outcome (ok, or the reason of an ImageError) -> count.
        predictions: label -> times it was the top class.
        queue: images without an answer now.
        version: of the model that answers now.
    """

    requests: dict[tuple[str, ...], int] = field(default_factory=dict)
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY))
    batches: Histogram = field(default_factory=lambda: Histogram(BATCH))
    images: dict[str, int] = field(default_factory=dict)
    predictions: dict[str, int] = field(default_factory=dict)
    queue: int = 0
    version: str = ""

    def request(self, path: str, code: int, seconds: float) -> None:
        """Count one request and how long it took."""
        key = (path, str(code))
        self.requests[key] = self.requests.get(key, 0) + 1
        self.latency.add(seconds)

    def image(self, outcome: str) -> None:
        """Count one image."""
        self.images[outcome] = self.images.get(outcome, 0) + 1

    def prediction(self, label: str) -> None:
        """Count an answer by its top class."""
        self.predictions[label] = self.predictions.get(label, 0) + 1


class Board:
    """Totals of all replicas: an actor, made by the first replica that needs it."""

    def __init__(self) -> None:
        self._totals: dict[str, Totals] = {}
        self._seen: dict[str, float] = {}

    def report(self, replica: str, totals: Totals) -> None:
        """Take the totals of a replica; later ones replace earlier ones."""
        self._totals[replica], self._seen[replica] = totals, time.monotonic()

    def all(self) -> list[tuple[Totals, bool]]:
        """Totals of every replica there ever was, and whether it runs."""
        now = time.monotonic()
        return [(t, now - self._seen[r] < STALE_SECONDS) for r, t in self._totals.items()]


def render(replicas: Iterable[tuple[Totals, bool]]) -> bytes:
    """The sum over replicas as Prometheus text; gauges only of those that run."""
    return generate_latest(_Collected(list(replicas)))


class _Collected:
    def __init__(self, replicas: list[tuple[Totals, bool]]) -> None:
        self._all = [totals for totals, _ in replicas]
        self._running = [totals for totals, running in replicas if running]

    def collect(self) -> Iterator[Metric]:
        """Metric families, in the form that prometheus_client prints."""
        yield _counter(
            "ns_ray_requests",
            "HTTP requests by path and status code.",
            ("path", "code"),
            _sum(t.requests for t in self._all),
        )
        yield _histogram(
            "ns_ray_request_latency_seconds",
            "Seconds from a request's first byte to its answer, body included.",
            [t.latency for t in self._all],
        )
        yield _histogram(
            "ns_ray_batch_size",
            "Images in one forward pass.",
            [t.batches for t in self._all],
        )
        yield _counter(
            "ns_ray_images",
            "Images by outcome: ok, or why they could not be used.",
            ("outcome",),
            _sum({(k,): n for k, n in t.images.items()} for t in self._all),
        )
        yield _counter(
            "ns_ray_prediction",
            f"Answers by top class, for models of at most {MAX_LABELS} classes.",
            ("label",),
            _sum({(k,): n for k, n in t.predictions.items()} for t in self._all),
        )
        yield GaugeMetricFamily(
            "ns_ray_queue_images",
            "Images that wait for an answer.",
            value=sum(t.queue for t in self._running),
        )
        versions = GaugeMetricFamily(
            "ns_ray_model_version", "Replicas that run a model version.", labels=("version",)
        )
        for version in sorted({t.version for t in self._running}):
            count = sum(t.version == version for t in self._running)
            versions.add_metric((version,), count)
        yield versions


def _sum(parts: Iterable[Mapping[tuple[str, ...], int]]) -> dict[tuple[str, ...], int]:
    total: dict[tuple[str, ...], int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + count
    return total


def _counter(
    name: str, text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], int]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key in sorted(counts):
        family.add_metric(key, counts[key])
    return family


def _histogram(name: str, text: str, parts: list[Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text)
    bounds = parts[0].bounds if parts else ()
    buckets, running = [], 0
    for i, bound in enumerate([*bounds, float("inf")]):
        running += sum(part.counts[i] for part in parts)
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), running))
    family.add_metric((), buckets, sum(part.sum for part in parts))
    return family
