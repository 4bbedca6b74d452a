"""Ten thousand hostile requests against `ns-ray serve`, on this machine only.

    python benchmarks/serve_hostile.py [--requests 10000] [--ingress haproxy]

Counts the answers; there must be no 5xx, no replica may restart, and the replicas' memory must
come back to within a tenth of where it was after a warm-up. Then 500 clients that go away in
mid-request among 32 that stay. Then, with the slowest answer of /livez beside each, bodies of 20 MB
that are as dear to parse as can be (and two honest ones), from two clients at once; and clients
that send a byte per second.
"""

import argparse
import base64
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import psutil  # noqa: E402
from broken_files import jpeg  # noqa: E402
from hostile import Attack, attack, many_parts, many_values, request, send  # noqa: E402
from served import Server, form, make_bundle  # noqa: E402

from serve import free_port, wait_ready  # noqa: E402


def replicas(pid: int) -> dict[int, float]:
    """Process id -> resident memory in MB of each replica."""
    children = psutil.Process(pid).children(recursive=True)
    return {
        c.pid: c.memory_info().rss / 2**20 for c in children if "ServeReplica" in str(c.cmdline())
    }


def throw(port: int, seeds: range) -> Counter[tuple[str, int | None]]:
    """Send attacks from 16 connections; count the answers by kind."""
    with ThreadPoolExecutor(16) as pool:
        attacks = map(attack, seeds)
        statuses = pool.map(lambda one: (one.name, send(port, one)), attacks)
        return Counter(statuses)


def disconnects(server: Server, count: int) -> Counter[int]:
    """Clients that go away among 32 that stay; the answers of those."""
    whole = request(jpeg(1))

    def leave(i: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
            connection.sendall(whole if i % 2 else whole[: len(whole) // 2])

    with ThreadPoolExecutor(48) as pool:
        gone = [pool.submit(leave, i) for i in range(count)]
        good = [pool.submit(server.post_image, jpeg(i)) for i in range(32 * 8)]
        for future in gone:
            future.result()
        return Counter(future.result().status for future in good)


def large_bodies(size: int) -> list[Attack]:
    """Requests whose bodies have this many bytes; the last two are honest."""
    noise = random.Random(0).randbytes(size // 4 * 3 - 1000)
    values = many_values(size).items()
    return [
        *(Attack(name, request(body, "application/json")) for name, body in values),
        Attack("white space", request(b"{" + b" " * (size - 2) + b"}", "application/json")),
        Attack("parts", request(*many_parts(size))),
        Attack("base64", request(b'{"inputs":"%s"}' % base64.b64encode(noise), "application/json")),
        Attack("file", request(*form([noise]))),
    ]


def slowest_livez(port: int, attacks: list[Attack]) -> tuple[float, Counter[int | None]]:
    """Seconds of the slowest answer of /livez while two clients send these, and their answers."""
    done = Event()

    def probe() -> float:
        slowest = 0.0
        while not done.is_set():
            start = time.monotonic()
            Server(port).call("GET", "/livez", timeout=300)
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.01)
        return slowest

    with ThreadPoolExecutor(1) as prober, ThreadPoolExecutor(2) as pool:
        slowest = prober.submit(probe)
        time.sleep(1)
        found = Counter(pool.map(lambda one: send(port, one, 300), attacks))
        time.sleep(1)
        done.set()
        return slowest.result(), found


def trickle(port: int, begin: bytes, count: int, seconds: int) -> Counter[bytes]:
    """Clients that go on with a byte per second: how each was answered, or that it never was."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    answers = dict.fromkeys(clients, b"open")
    for client in clients:
        client.sendall(begin)
        client.setblocking(False)
    end = time.monotonic() + seconds
    while b"open" in answers.values() and time.monotonic() < end:
        time.sleep(1)
        for client in [c for c, answer in answers.items() if answer == b"open"]:
            try:
                client.sendall(b"x")
                answers[client] = client.recv(100)[9:12] or b"closed"
            except BlockingIOError:
                pass
            except ConnectionError:
                answers[client] = b"closed"
    for client in clients:
        client.close()
    return Counter(answers.values())


def main() -> None:
    """Attack, and say what happened; exit 1 when something broke."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--ingress", default="auto")
    parser.add_argument("--bundle", default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    bundle = options.bundle or str(make_bundle(folder / "bundle"))
    port = free_port()
    command = [sys.executable, "-m", "ns_ray", "serve", "--bundle", bundle, "--port", str(port)]
    process = subprocess.Popen([*command, "--ingress", options.ingress])
    failed: list[Any] = []
    try:
        server = Server(port)
        wait_ready(f"{server.url}/readyz", process)
        throw(port, range(10**9, 10**9 + 1000))
        time.sleep(5)
        before = replicas(process.pid)
        start = time.monotonic()
        found = throw(port, range(options.requests))
        seconds = time.monotonic() - start
        time.sleep(10)
        after = replicas(process.pid)
        print(f"{options.requests:,} attacks in {seconds:.0f} s")
        for code in sorted({c for _, c in found}, key=str):
            kinds = {k: n for (k, c), n in sorted(found.items(), key=str) if c == code}
            print(f"  {code or 'closed'}: {sum(kinds.values()):,}  {kinds}")
        print(f"  replicas before {before}, after {after} (MB)")
        failed += [key for key in found if (key[1] or 0) >= 500]
        if before.keys() != after.keys():
            failed.append("a replica was restarted")
        failed += [pid for pid in after if after[pid] > 1.1 * before.get(pid, 0)]
        stayed = disconnects(server, 500)
        print(f"500 clients went away; those that stayed got {dict(stayed)}")
        failed += [code for code in stayed if code != 200]
        for one in large_bodies(20 * 2**20 - 100):
            seconds, codes = slowest_livez(port, [one] * 4)
            print(f"  {one.name}: {dict(codes)}, /livez within {1000 * seconds:.0f} ms", flush=True)
            failed += [one.name for code in codes if (code or 0) >= 500]
        for name, begin in {
            "bodies": request(b"", length=1000),
            "headers": b"POST /predict HTTP/1.1\r\nX: ",
        }.items():
            start = time.monotonic()
            found_slow = trickle(port, begin, 100, 60)
            seconds = time.monotonic() - start
            print(f"  100 slow {name}: {dict(found_slow)} after {seconds:.0f} s", flush=True)
            failed += [f"slow {name} stay" for answer in found_slow if answer == b"open"]
        print(f"  replicas at the end {replicas(process.pid)} (MB)")
        if server.post_image(jpeg(1)).status != 200:
            failed.append("no answer in the end")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    print(f"FAILED: {failed}" if failed else "nothing broke")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
