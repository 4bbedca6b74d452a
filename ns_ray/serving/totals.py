"""What a server counts, in Prometheus' text form.

Each replica counts for itself and gives its totals to one small actor, the board. Any replica that
is asked for /metrics gets the sum from there. So a scrape through a load balancer sees one service,
and counters don't fall when a replica ends.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

LATENCY = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, inf)
"""Upper bounds of the latency histogram, in seconds."""
BATCH = (1, 2, 4, 8, 16, 32, 64, inf)
"""Upper bounds of the batch size histogram, in images."""
MAX_LABELS = 100
"""Predictions are counted by class up to this many classes: every class is a series."""
STALE_SECONDS = 10.0
"""A replica that hasn't reported for so long no longer counts as running."""


@dataclass
class Totals:
    """What one replica counts; plain values, so that it travels.

    Attributes:
        requests: (path, code) -> requests; paths that the API doesn't have are one.
        latency: upper bound in seconds -> requests that took so long, but longer than the bound
            below.
        seconds: that all requests took together.
        batches: images in a forward pass -> forward passes.
        images: outcome (ok, or the reason of an ImageError) -> images.
        predictions: label -> times it was the top class.
        queue: images without an answer now.
        body_bytes: bytes of request bodies that are held now.
        version: of the model that answers now.
    """

    requests: Counter[tuple[str, ...]] = field(default_factory=Counter)
    latency: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    predictions: Counter[str] = field(default_factory=Counter)
    queue: int = 0
    body_bytes: int = 0
    version: str = ""

    def request(self, path: str, code: int, seconds: float) -> None:
        """Count one request and how long it took."""
        self.requests[path, str(code)] += 1
        self.latency[next(bound for bound in LATENCY if seconds <= bound)] += 1
        self.seconds += seconds


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
            sum((t.requests for t in self._all), Counter()),
        )
        yield _histogram(
            "ns_ray_request_latency_seconds",
            "Seconds from a request's first byte to its answer, body included.",
            LATENCY,
            sum((t.latency for t in self._all), Counter()).items(),
            sum(t.seconds for t in self._all),
        )
        sizes: Counter[int] = sum((t.batches for t in self._all), Counter())
        yield _histogram(
            "ns_ray_batch_size",
            "Images in one forward pass.",
            BATCH,
            sizes.items(),
            sum(size * passes for size, passes in sizes.items()),
        )
        yield _counter(
            "ns_ray_images",
            "Images by outcome: ok, or why they could not be used.",
            ("outcome",),
            {(k,): n for k, n in sum((t.images for t in self._all), Counter()).items()},
        )
        yield _counter(
            "ns_ray_prediction",
            f"Answers by top class, for models of at most {MAX_LABELS} classes.",
            ("label",),
            {(k,): n for k, n in sum((t.predictions for t in self._all), Counter()).items()},
        )
        yield GaugeMetricFamily(
            "ns_ray_queue_images",
            "Images that wait for an answer.",
            value=sum(t.queue for t in self._running),
        )
        versions = GaugeMetricFamily(
            "ns_ray_model_version", "Replicas that run a model version.", labels=("version",)
        )
        for version, count in sorted(Counter(t.version for t in self._running).items()):
            versions.add_metric((version,), count)
        yield versions


def _counter(
    name: str, text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], int]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key in sorted(counts):
        family.add_metric(key, counts[key])
    return family


def _histogram(
    name: str,
    text: str,
    bounds: Sequence[float],
    counts: Collection[tuple[float, int]],
    total: float,
) -> Metric:
    """How many values lie below each bound; `counts` is (value, times), `total` their sum."""
    family = HistogramMetricFamily(name, text)
    buckets = [
        (
            "+Inf" if bound == inf else str(float(bound)),
            sum(times for value, times in counts if value <= bound),
        )
        for bound in bounds
    ]
    family.add_metric((), buckets, total)
    return family
