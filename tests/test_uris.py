"""Object stores as their users name them: an S3 server of moto's, and options in URIs."""

import gzip
import io
import logging
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from test_streams import CODECS, tar

from ns_ray import store
from ns_ray.commands import app
from ns_ray.config import load_either
from ns_ray.data.sources import list_source
from ns_ray.data.sources.files import base_of, glob
from ns_ray.errors import ConfigError
from ns_ray.store.layout import RunLayout
from ns_ray.store.mirror import mirrored

logging.getLogger("werkzeug").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an S3 server with a bucket."""
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    address = f"127.0.0.1:{made.get_host_and_port()[1]}"
    request = urllib.request.Request(f"http://{address}/bucket", method="PUT")
    urllib.request.urlopen(request).close()
    yield address
    made.stop()


@pytest.fixture(autouse=True)
def anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)


@pytest.mark.parametrize("options", ["http://{}", "{}&scheme=http", "http://{}/&region=eu-west-1"])
@pytest.mark.parametrize("folder", ["/a folder", ""])
def test_options_stay_with_what_is_below(server: str, options: str, folder: str) -> None:
    root = store.absolute(f"s3://bucket{folder}?endpoint_override={options.format(server)}")
    assert store.absolute(root) == root
    file = store.join(root, "sub", "x.txt")
    store.write_bytes(file, b"here")
    assert store.read_bytes(file) == b"here"
    assert file.endswith(f"{folder}/sub/x.txt")
    assert server in file
    assert store.list_files(store.join(root, "sub")) == ["x.txt"]
    store.remove_files(store.join(root, "sub"), ["x.txt"])
    assert not store.exists(file)


def test_patterns_match_below_options(server: str) -> None:
    uri = f"s3://bucket/tars/{{}}?endpoint_override=http://{server}&region=eu-west-1"
    for name in ("a-0.tar", "a-1.tar", "b-0.tar"):
        store.write_bytes(store.absolute(uri.format(name)), b"")
    found = glob(store.absolute(uri.format("a-?.tar")))
    assert [info.path.rpartition("/")[2] for info in found] == ["a-0.tar", "a-1.tar"]
    assert base_of(found) == store.absolute(uri.format(""))
    assert len(glob(store.absolute(uri.format("b-0.tar")))) == 1


def test_a_compressed_file_is_written_and_read_as_it_is(server: str) -> None:
    uri = f"s3://bucket/tables/t.csv.gz?endpoint_override=http://{server}"
    data = gzip.compress(b"path,label\n1.jpg,cat\n")
    store.write_bytes(uri, data)
    assert store.read_bytes(uri) == data
    assert [(item.key, item.label) for item in list_source(uri).items] == [("1.jpg", "cat")]


@pytest.mark.parametrize("ending", CODECS)
def test_a_compressed_tar_is_read_from_a_store(server: str, ending: str) -> None:
    uri = f"s3://bucket/tars/set.{ending}?endpoint_override=http://{server}"
    store.write_bytes(uri, CODECS[ending](tar({"1.jpg": b"image", "1.cls": b"cat"})))
    (item,) = list_source(uri).items
    assert (item.key, item.label, item.read()) == ("set/1", "cat", b"image")


def test_a_folder_of_an_archive_may_have_options(server: str) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("train/cat/1.jpg", b"image")
        archive.writestr("test/dog/2.jpg", b"picture")
    options = f"endpoint_override=http://{server}"
    store.write_bytes(f"s3://bucket/set.zip?{options}", made.getvalue())
    (item,) = list_source(f"s3://bucket/set.zip/train?{options}").items
    assert (item.key, item.label, item.read()) == ("set/train/cat/1.jpg", "cat", b"image")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_the_environment_names_the_server(
    server: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, f"http://{server}")
    for path in (f"s3://bucket/{variable}", f"s3://bucket/{variable}?region=us-east-1"):
        store.write_bytes(path, path.encode())
        assert store.read_bytes(path) == path.encode()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://b/x?endpoint=h", r"'endpoint'.*endpoint_override, scheme, region"),
        ("s3://b/x?reigon=eu-west-1", r"'reigon' \(did you mean 'region'\?\)"),
        ("s3://b?region=eu&what=1", "'what'"),
        ("gs://b/x?region=eu", "'region'.*gs:// has endpoint_override, scheme, project_id"),
        ("s3://b/x?scheme=ftp", "http or https, not 'ftp'"),
        ("s3://b?tls_ca_file_path=/etc/ca.pem", "'tls_ca_file_path' is empty; write %2F"),
    ],
)
def test_a_wrong_option_is_refused(uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        store.absolute(uri)
    with pytest.raises(ConfigError, match=says):
        store.join(uri, "x")
    with pytest.raises(ConfigError, match=says):
        store.exists(uri)


def test_a_wrong_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'maybe'"):
        store.exists("s3://b/x?endpoint_override=127.0.0.1:1&allow_bucket_creation=maybe")


def test_a_run_that_fails_leaves_its_log_and_the_next_goes_on(server: str) -> None:
    root = store.absolute(f"s3://bucket/run?endpoint_override=http://{server}")

    def work(line: str) -> None:
        with mirrored(root, ["metrics.jsonl"]) as folder:
            with Path(folder, "metrics.jsonl").open("a") as file:
                file.write(line)
            raise KeyboardInterrupt

    for line in ("one\n", "two\n"):
        with pytest.raises(KeyboardInterrupt):
            work(line)
    assert store.read_bytes(store.join(root, "metrics.jsonl")) == b"one\ntwo\n"


def test_a_relative_place_is_refused_in_a_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_either(None, "digits", [])
    assert RunLayout.of(config).root.startswith(f"{tmp_path}/runs/")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(
        ConfigError, match=r"storage='runs' is relative.*set storage to an absolute"
    ):
        RunLayout.of(config)
    for place in (f"{tmp_path}/runs", "~/runs", "s3://bucket/runs"):
        assert store.kept(place, "storage") == store.absolute(place)


def test_a_relative_out_is_refused_before_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SystemExit) as ended:
        app(["pack", "--data", "digits", "--out", "corpus"])
    assert ended.value.code == 2
    assert "--out='corpus' is relative" in capsys.readouterr().err
