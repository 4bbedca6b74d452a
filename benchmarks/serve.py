"""Requests per second and latency of `ns-ray serve` beside LitServe, on one machine in one run.

    apt-get install wrk; pip install -e '.[bench]'
    python benchmarks/serve.py [--seconds 5] [--rounds 1] [--out serve.json]

One JPEG of about 100 kB, tf_efficientnet_lite0 with ImageNet weights, wrk with one thread and 1, 8
and 32 connections. Servers start one after the other. For LitServe several settings are tried, and
the best one is taken for each number of connections. The limit is decoding and batched forward
passes alone, in one process (`Predictor.predict`).
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

from machine import machine
from memory import cells, watched

HERE = Path(__file__).resolve().parent
CONNECTIONS = (1, 8, 32)
BOUNDARY = "----ns-ray-bench"

LITSERVE: dict[str, list[list[str]]] = {
    "eager": [[], ["--workers=2"], ["--batch=8", "--wait=0.002"]],
    "same": [[], ["--workers=2"], ["--batch=8", "--wait=0.002"]],
}
"""Settings tried: no batching with one worker of all threads, with two workers of one, batches."""

POST = """
wrk.method = "POST"
local file = io.open("{file}", "rb")
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "{kind}"
"""


def photo() -> bytes:
    """A photograph of scikit-learn, 640 x 427, as a JPEG of about 100 kB."""
    import io

    from PIL import Image

    raw = (resources.files("sklearn.datasets") / "images/china.jpg").read_bytes()
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    for quality in range(95, 40, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= 105_000:
            break
    return buffer.getvalue()


def scripts(folder: Path, image: bytes) -> dict[str, str]:
    """wrk scripts that post the image as it is, and as a form."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="request"; filename="a.jpg"\r\n'
    form = (head + "\r\n").encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    made = {}
    for name, body, kind in (
        ("raw", image, "image/jpeg"),
        ("form", form, f"multipart/form-data; boundary={BOUNDARY}"),
    ):
        (folder / name).write_bytes(body)
        script = folder / f"{name}.lua"
        script.write_text(POST.format(file=folder / name, kind=kind))
        made[name] = str(script)
    return made


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_ready(url: str, process: "subprocess.Popen[bytes]", seconds: float = 180) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise RuntimeError(f"{url} did not answer within {seconds} s")


def wrk(url: str, script: str, connections: int, seconds: int) -> dict[str, float]:
    """One measurement: requests/s, latencies in ms, and answers that were no 200."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script, url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return {
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),  # type: ignore[index]
        "p50_ms": milliseconds(text, "50%"),
        "p99_ms": milliseconds(text, "99%"),
        "bad": int(bad[1]) if bad else 0,
    }


def milliseconds(text: str, row: str) -> float:
    """A percentile of wrk's table."""
    number, unit = re.search(rf"{row}\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def measure(command: list[str], url: str, ready: str, script: str, seconds: int) -> Any:
    """Start a server, warm it up, measure it with each number of connections, stop it."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            try:
                wait_ready(ready, process)
            except RuntimeError:
                log.seek(0)
                print(log.read().decode()[-3000:], file=sys.stderr)
                raise
            wrk(url, script, 8, 2)
            with watched(process.pid) as peaks:
                rates = {str(c): wrk(url, script, c, seconds) for c in CONNECTIONS}
            return {**rates, "memory": peaks}
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def ours(bundle: str, ingress: str, script: str, seconds: int) -> Any:
    """`ns-ray serve` with its defaults."""
    port = free_port()
    command = [sys.executable, "-m", "ns_ray", "serve", "--bundle", bundle, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    command += ["--ingress", ingress]
    return measure(command, f"{url}/predict", f"{url}/readyz", script, seconds)


def litserve(bundle: str, kind: str, options: list[str], script: str, seconds: int) -> Any:
    """LitServe with one of its settings."""
    port = free_port()
    command = [sys.executable, str(HERE / "litserve_side.py"), bundle, str(port), kind, *options]
    url = f"http://127.0.0.1:{port}"
    return measure(command, f"{url}/predict", f"{url}/health", script, seconds)


def limit(bundle: str, image: bytes) -> dict[str, float]:
    """Images/s of decoding and batched forward passes alone: the best batch size of three."""
    from ns_ray.compute import keep_memory
    from ns_ray.model import Predictor

    keep_memory()
    rates = {}
    for size in (8, 16, 32):
        predictor = Predictor(bundle, batch_size=size)
        predictor.predict([image] * 64)
        start = time.perf_counter()
        predictor.predict([image] * 1024)
        rates[str(size)] = 1024 / (time.perf_counter() - start)
    return rates


def main() -> None:
    """Measure everything and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="sides whose name contains this")
    parser.add_argument("--bundle", default=None)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    bundle = options.bundle or str(folder / "bundle")
    if options.bundle is None:
        fetch = ["fetch", "--model", "tf_efficientnet_lite0", "--pretrained", "efficientnet-lite"]
        subprocess.run([sys.executable, "-m", "ns_ray", *fetch, "--out", bundle], check=True)
    image = photo()
    posts = scripts(folder, image)
    print(f"{machine()}; JPEG of {len(image):,} bytes; {options.seconds} s each", flush=True)
    sides: dict[str, Any] = {
        "ours, HAProxy": lambda: ours(bundle, "haproxy", posts["raw"], options.seconds),
        "ours, default proxy": lambda: ours(bundle, "proxy", posts["raw"], options.seconds),
    }
    for kind, variants in LITSERVE.items():
        for variant in variants:
            name = f"LitServe {kind} {' '.join(variant)}".strip()
            sides[name] = lambda k=kind, v=variant: litserve(
                bundle, k, v, posts["form"], options.seconds
            )
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            if options.only in name:
                found[name].append(side())
                show(name, found[name][-1])
    limits = limit(bundle, image)
    best = max(limits.values())
    print(f"limit: {best:.0f} images/s ({limits})")
    summary(found, best)
    if options.out:
        result = {"machine": machine(), "image_bytes": len(image), "limit": limits, "sides": found}
        Path(options.out).write_text(json.dumps(result, indent=1))


def show(name: str, result: Any) -> None:
    """One line per side as it is measured."""
    rates = {c: result[str(c)] for c in CONNECTIONS}
    told = [
        f"{c}: {r['rps']:.1f}/s p50 {r['p50_ms']:.1f} p99 {r['p99_ms']:.1f} ms"
        + (f" BAD {r['bad']}" if r["bad"] else "")
        for c, r in rates.items()
    ]
    memory = f"memory {cells(result['memory'])} MiB"
    print(f"{name:40} " + " | ".join([*told, memory]), flush=True)


def summary(found: dict[str, list[Any]], limit_rate: float) -> None:
    """Ratios of our faster ingress to the best settings of each LitServe side."""

    def rate(name: str, c: int) -> float:
        return float(statistics.median([r[str(c)]["rps"] for r in found[name]] or [0.0]))

    for kind in LITSERVE:
        names = [n for n in found if n.startswith(f"LitServe {kind}") and found[n]]
        if not names or not found["ours, HAProxy"]:
            continue
        ratios = [rate("ours, HAProxy", c) / max(rate(n, c) for n in names) for c in CONNECTIONS]
        print(f"ours / LitServe {kind}: " + ", ".join(f"{r:.2f}" for r in ratios))
    if found["ours, HAProxy"]:
        print(f"ours / limit at 32: {rate('ours, HAProxy', 32) / limit_rate:.2f}")


if __name__ == "__main__":
    main()
