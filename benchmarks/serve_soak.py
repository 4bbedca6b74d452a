"""Ten minutes at 80 % of the load that the server can take, on this machine only, and a plot of the
memory and the latency.

    pip install -e '.[bench]'
    python benchmarks/serve_soak.py --bundle BUNDLE [--minutes 10] [--out docs/serving-soak.svg]

First the most that 32 connections get is measured for ten seconds; then clients send at 80 % of it,
each at fixed times (an answer that is late makes no request later).
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from machine import machine

from serve import free_port, photo, scripts, wait_ready, wrk

CLIENTS = 32
SAMPLE_SECONDS = 5.0


class Client(threading.Thread):
    """One connection with its share of the load."""

    def __init__(self, port: int, image: bytes, every: float, first: float, end: float) -> None:
        super().__init__(daemon=True)
        self._port, self._image = port, image
        self._every, self._next, self._end = every, first, end
        self.latencies: list[tuple[float, float]] = []
        self.failures = 0

    def run(self) -> None:
        """Send until the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while self._next < self._end:
            time.sleep(max(0.0, self._next - time.monotonic()))
            due, self._next = self._next, self._next + self._every
            try:
                headers = {"Content-Type": "image/jpeg"}
                connection.request("POST", "/predict", self._image, headers)
                reply = connection.getresponse()
                reply.read()
                self.failures += reply.status != 200
            except (OSError, http.client.HTTPException):
                self.failures += 1
                connection.close()
            self.latencies.append((due, time.monotonic() - due))


def memory(pid: int) -> dict[str, float]:
    """Resident MB of the replica, of the ingress, and of all processes of the server together."""
    processes = psutil.Process(pid).children(recursive=True)
    found = {"replica": 0.0, "all": psutil.Process(pid).memory_info().rss / 2**20}
    for process in processes:
        try:
            size = process.memory_info().rss / 2**20
            found["all"] += size
            if "ServeReplica" in str(process.cmdline()):
                found["replica"] += size
        except psutil.NoSuchProcess:
            continue
    return found


def soak(port: int, pid: int, image: bytes, rate: float, seconds: float) -> dict[str, Any]:
    """Load for some time; samples of the memory, and the latencies."""
    start = time.monotonic() + 1
    every = CLIENTS / rate
    clients = [
        Client(port, image, every, start + i * every / CLIENTS, start + seconds)
        for i in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    samples = []
    while time.monotonic() < start + seconds:
        samples.append({"t": time.monotonic() - start, **memory(pid)})
        time.sleep(SAMPLE_SECONDS)
    for client in clients:
        client.join(60)
    latencies = sorted((due - start, took) for c in clients for due, took in c.latencies)
    return {
        "rate": rate,
        "requests": len(latencies),
        "failures": sum(c.failures for c in clients),
        "samples": samples,
        "latencies": latencies,
    }


def percentile(values: list[float], share: float) -> float:
    """By rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def plot(result: dict[str, Any], path: str) -> None:
    """Memory and latency over time, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True)
    times = [s["t"] / 60 for s in result["samples"]]
    for name, label in (("replica", "replica"), ("all", "all processes")):
        upper.plot(times, [s[name] for s in result["samples"]], label=label)
    upper.set_ylabel("resident memory (MB)")
    upper.set_ylim(bottom=0)
    upper.legend()
    slots: dict[int, list[float]] = {}
    for due, took in result["latencies"]:
        slots.setdefault(int(due // 10), []).append(1000 * took)
    for share, label in ((0.5, "median"), (0.99, "99th percentile")):
        values = [percentile(slots[k], share) for k in sorted(slots)]
        lower.plot([k / 6 for k in sorted(slots)], values, label=label)
    lower.set_ylabel("latency (ms)")
    lower.set_xlabel("minutes")
    lower.set_yscale("log")
    lower.legend()
    figure.suptitle(f"{result['rate']:.0f} requests/s, {result['failures']} failures")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure the most, then soak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--out", default="serving-soak.svg")
    options = parser.parse_args()
    image = photo()
    folder = Path(tempfile.mkdtemp())
    post = scripts(folder, image)["raw"]
    port = free_port()
    command = [sys.executable, "-m", "ns_ray", "serve", "--port", str(port)]
    process = subprocess.Popen([*command, "--bundle", options.bundle])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_ready(f"{url}/readyz", process)
        wrk(f"{url}/predict", post, CLIENTS, 5)
        most = wrk(f"{url}/predict", post, CLIENTS, 10)["rps"]
        print(f"{machine()}: at most {most:.0f} requests/s", flush=True)
        rate = options.share * most
        result = soak(port, process.pid, image, rate, 60 * options.minutes)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    took = [1000 * t for _, t in result["latencies"]]
    first, last = result["samples"][len(result["samples"]) // 10], result["samples"][-1]
    print(
        f"{result['requests']:,} requests at {rate:.0f}/s, {result['failures']} failures; "
        f"median {percentile(took, 0.5):.1f} ms, p99 {percentile(took, 0.99):.1f} ms; "
        f"replica {first['replica']:.0f} -> {last['replica']:.0f} MB, "
        f"all {first['all']:.0f} -> {last['all']:.0f} MB"
    )
    Path(options.out).with_suffix(".json").write_text(
        json.dumps({k: v for k, v in result.items() if k != "latencies"})
    )
    plot(result, options.out)


if __name__ == "__main__":
    main()
