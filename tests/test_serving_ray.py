"""The server on Ray Serve, as users start it: `ns-ray serve`, and `serve deploy` on a cluster."""

import contextlib
import http.client
import importlib.util
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_files import encoded, jpeg, picture
from conftest import free_ports
from served import Server, b64, make_bundle
from tiny import user_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
KEY = "the-key"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / str(g), generation=g, seed=g) for g in (1, 2)]


def load_client() -> Any:
    spec = importlib.util.spec_from_file_location("serve_client", ROOT / "serve" / "client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def processes_of(pid: int, word: str) -> list[Any]:
    """Processes below another with a word in their command line."""
    import psutil

    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join([child.name(), *child.cmdline()]):
                found.append(child)
    return found


def replicas(pid: int) -> list[Any]:
    return processes_of(pid, "ServeReplica")


def listening(pid: int, *words: str) -> set[str]:
    """Addresses on which HAProxy, and for HTTP the replicas and the proxy of a server, listen; or
    those of them that have one of the words in their command line."""
    import psutil

    found = set()
    for word in words or ("ServeReplica", "ProxyActor", "haproxy"):
        for process in processes_of(pid, word):
            with contextlib.suppress(psutil.NoSuchProcess):
                for c in process.net_connections("tcp"):
                    ours = process.name() == "haproxy" or 30000 <= c.laddr.port <= 31000
                    if c.status == psutil.CONN_LISTEN and ours:
                        found.add(c.laddr.ip)
    return found


@contextmanager
def ns_ray_serve(
    folder: Path, *arguments: str, host: str = "127.0.0.1"
) -> Iterator[tuple[Server, Any]]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ns_ray", "serve", "--port", str(port), *arguments]
    command += [] if host == "127.0.0.1" else ["--host", host]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=user_environment(), stdout=log, stderr=log)
    server = Server(port, default_headers={"X-API-Key": KEY}, host=host)
    try:
        wait(lambda: server.get("/readyz").status == 200, 180, process)
        yield server, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()


def wait(done: Callable[[], bool], seconds: float, process: Any = None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process is None or process.poll() is None, "the server ended"
        with contextlib.suppress(OSError, http.client.HTTPException):
            if done():
                return
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s")


class Load:
    """Clients that classify without a pause until told to stop."""

    def __init__(self, one: Callable[[], Any], clients: int = 4) -> None:
        self.answers: list[Any] = []
        self.errors: list[BaseException] = []
        self._one, self._stop = one, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self._one())
            except BaseException as error:
                self.errors.append(error)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_two_replicas_behind_haproxy(bundles: list[Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# ours\n{KEY}\n")
    options = ["--bundle", str(bundles[0]), "--api-key-file", str(tmp_path / "keys")]
    options += ["--set", "serve.replicas=2", "--set", "serve.cpus=1"]
    options += ["--set", "serve.predict.runtime=torch"]
    client = load_client()
    with ns_ray_serve(tmp_path, *options) as (server, process):
        reply = server.post_image(jpeg(1))
        assert reply.status == 200
        assert reply.headers["x-model-version"].startswith("tiny-gen-01-")
        given = server.get("/livez", **{"X-Request-ID": "mine"})
        assert given.headers["x-request-id"] == "mine"
        assert server.call("GET", "/info", headers={"X-API-Key": "no"}).status == 401
        assert server.post_image(b"no image").status == 400
        assert server.get("/nothing").error
        if sys.platform == "linux":
            assert listening(process.pid) == {"127.0.0.1"}

        # Both replicas answer, and whichever is asked for metrics knows about all requests.
        for i in range(40):
            server.post_image(jpeg(i))
        wait(lambda: 'ns_ray_images_total{outcome="ok"} 41.0' in text_of(server), 60)
        both = re.compile(r'ns_ray_model_version\{version="tiny-gen-01-\w+"\} 2\.0')
        wait(lambda: both.search(text_of(server)) is not None, 120)  # one may still be starting

        # One replica is killed under load: clients that ask again get their answers.
        before = replicas(process.pid)
        assert len(before) == 2
        with Load(lambda: client.classify(server.url, jpeg(3), key=KEY)) as load:
            time.sleep(1)
            before[0].kill()
            wait(lambda: len(replicas(process.pid)) == 2 and not before[0].is_running(), 60)
            time.sleep(1)
        assert load.errors == []
        assert all(len(answer) == 3 for answer in load.answers)

        # A stop answers what was accepted: these requests are sent as a whole, and take a second.
        large = b64(encoded(picture(1, 2500, 2000), "JPEG"))
        body = json.dumps({"inputs": [large] * 12}).encode()
        headers = {"Content-Type": "application/json", "X-API-Key": KEY}
        asked = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=90) for _ in range(4)]
        for connection in asked:
            connection.request("POST", "/predict", body, headers)
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        for connection in asked:
            answers = json.load(connection.getresponse())
            assert [len(item) for item in answers] == [3] * 12
            connection.close()
        assert process.wait(90) == 0, (tmp_path / "log").read_text()


def test_two_servers_of_one_machine(bundles: list[Path], tmp_path: Path) -> None:
    """Each answers with its own model from its first answer on, and after its replica has died. The
    second is asked at another address, where HAProxy alone listens, and by another origin's pages.
    """
    options = ["--set", "serve.cpus=1", "--set", "serve.predict.runtime=torch"]
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()

    def versions(server: Server) -> set[str]:
        replies = [server.post_image(jpeg(i)) for i in range(20)]
        assert {reply.status for reply in replies} == {200}
        return {reply.headers["x-model-version"][:11] for reply in replies}

    origin = {"Origin": "http://localhost:3000"}
    asks = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-api-key"}
    with contextlib.ExitStack() as second_to_stop:
        arguments = ["--bundle", str(bundles[0]), *options]
        with ns_ray_serve(folders[0], *arguments) as (first, first_process):
            arguments = ["--bundle", str(bundles[1]), *options]
            arguments += ["--set", "serve.allow_origins=http://localhost:3000"]
            host = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
            second, process = second_to_stop.enter_context(
                ns_ray_serve(folders[1], *arguments, host=host)
            )
            assert versions(second) == {"tiny-gen-02"}
            assert versions(first) == {"tiny-gen-01"}
            if sys.platform == "linux":
                assert listening(process.pid) == {"127.0.0.1", host}
                assert listening(process.pid, "ServeReplica", "ProxyActor") == {"127.0.0.1"}
            for one in replicas(process.pid):
                one.kill()
            wait(lambda: second.post_image(jpeg(1)).status == 200, 120, process)
            assert versions(second) == {"tiny-gen-02"}
            told = second.call("OPTIONS", "/predict", None, {**origin, **asks})
            assert told.status == 200
            assert told.headers["access-control-allow-origin"] == origin["Origin"]
            assert first.call("OPTIONS", "/predict", None, {**origin, **asks}).status == 405
            put = second.call("PUT", "/predict", jpeg(1), origin)
            assert (put.status, put.headers["access-control-allow-origin"]) == (
                200,
                *origin.values(),
            )
        assert first_process.poll() == 0
        assert versions(second) == {"tiny-gen-02"}
    for folder in folders:
        assert "INFO" not in (folder / "log").read_text()


def text_of(server: Server) -> str:
    return server.get("/metrics").body.decode()


@pytest.fixture
def deployed(
    head: dict[str, str], bundles: list[Path], tmp_path: Path
) -> Iterator[tuple[Server, dict[str, str]]]:
    """serve/config.yaml on a cluster, with a small bundle, on a free port."""
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    (port,) = free_ports(1)
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] |= {"cpus": 1, "predict": {"runtime": "torch"}}
    (deployment,) = application["deployments"]
    deployment |= {"num_replicas": 2, "user_config": {"bundle": str(bundles[0])}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environ = {**head, "RAY_DASHBOARD_ADDRESS": head["RAY_API_SERVER_ADDRESS"]}
    run(["serve", "deploy", str(tmp_path / "config.yaml")], environ)
    server = Server(port)
    wait(lambda: server.get("/readyz").status == 200, 120)
    yield server, environ
    run(["serve", "shutdown", "-y"], environ)


def run(command: list[str], environ: dict[str, str], expected: int = 0) -> str:
    done = subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_model_is_swapped_under_load(
    deployed: tuple[Server, dict[str, str]], bundles: list[Path]
) -> None:
    server, environ = deployed

    def one() -> str:
        reply = server.post_image(jpeg(1))
        assert reply.status == 200, reply.body
        return str(reply.headers["x-model-version"])

    ns_ray = [sys.executable, "-m", "ns_ray"]
    assert "is no bundle" in run([*ns_ray, "swap", "--bundle", "/nowhere"], environ, 2)
    wrong = [*ns_ray, "swap", "--bundle", str(bundles[1]), "--application", "other"]
    assert "there is no application 'other'" in run(wrong, environ, 2)
    assert "no other bundle" in run([*ns_ray, "swap", "--previous"], environ, 2)
    with Load(one) as load:
        time.sleep(1)
        assert str(bundles[1]) in run([*ns_ray, "swap", "--bundle", str(bundles[1])], environ)
        swapped = len(load.answers)
        time.sleep(1)
        assert str(bundles[0]) in run([*ns_ray, "swap", "--previous"], environ)
        back = len(load.answers)
        time.sleep(1)
    assert load.errors == []
    first, second = "tiny-gen-01-", "tiny-gen-02-"
    assert load.answers[0].startswith(first)
    assert {a[:12] for a in load.answers[swapped + 8 : swapped + 20]} == {second}
    assert {a[:12] for a in load.answers[back + 8 :]} == {first}
