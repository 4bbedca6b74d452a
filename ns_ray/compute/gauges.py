"""What the driver says of its stages on the screen, as metrics of Ray, beside Ray's own.

Every few seconds a thread looks at the stages that run, so that no stage knows of it. Ray writes
`ray_` before each name: Prometheus reads `ray_ns_ray_stage_left`. A series goes with its driver.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ns_ray import log
from ns_ray.log import Meter

SECONDS = 5.0
"""Between two looks: Ray's own metrics are reported as often."""

GAUGES = {
    "ns_ray_stage_running": "1 while a stage runs, 0 after its end.",
    "ns_ray_stage_total": "Units of a stage, done or not: images, steps, label files.",
    "ns_ray_stage_left": "Units of a stage that are left.",
    "ns_ray_images_per_second": "Images/s of a stage: of labeling and packing since it began, of a "
    "training between its last two reports.",
    "ns_ray_waiting_ratio": "Share of the time since a stage began that it waited for input.",
    "ns_ray_restarts": "Times that a training began again because it had lost a worker.",
}
"""Name -> what it says. Each has the tags run, stage and unit."""


@contextmanager
def gauged(run: str) -> Iterator[None]:
    """Inside, what `log.running` holds is told to Ray, which must have been started.

    Args:
        run: a tag of every metric.
    """
    over = threading.Event()

    def watch() -> None:
        gauges = Gauges(run)
        while not over.wait(SECONDS):
            gauges.show(log.running)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class Gauges:
    """The gauges of one run."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        tags = ("run", "stage", "unit")
        self._gauges = {name: Gauge(name, text, tag_keys=tags) for name, text in GAUGES.items()}
        self._run = run
        self._running: list[Meter] = []

    def show(self, running: Sequence[Meter]) -> None:
        """Set the gauges of the stages that run, and once more those of what has ended since."""
        now = list(running)
        for meter in self._running:
            if meter not in now:
                self._set(meter, runs=False)
        for meter in now:
            self._set(meter, runs=True)
        self._running = now

    def _set(self, meter: Meter, runs: bool) -> None:
        rate = meter.rate if meter.unit == "images" else meter.images_rate
        values = {
            "ns_ray_stage_running": float(runs),
            "ns_ray_stage_total": meter.total,
            "ns_ray_stage_left": max(0, meter.total - meter.done),
            "ns_ray_images_per_second": rate if runs else 0.0,
            "ns_ray_waiting_ratio": meter.waiting if runs else 0.0,
            "ns_ray_restarts": meter.restarts,
        }
        tags = {"run": self._run, "stage": meter.name, "unit": meter.unit}
        for name, value in values.items():
            if value is not None:
                self._gauges[name].set(value, tags)
