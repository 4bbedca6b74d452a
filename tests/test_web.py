"""Sources on web servers: tables, tars and images by their URLs, and servers that fail."""

import bz2
import gzip
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_files import jpeg
from packed import fill, rows, run
from test_idx import idx, numbers, pictures
from test_streams import samples, tar, zstd
from web_server import Site, serving

from ns_ray import store
from ns_ray.data.packing import pack
from ns_ray.data.sources import list_source
from ns_ray.errors import ConfigError, DataError, MissingSourceError
from ns_ray.store import hub as store_hub
from ns_ray.store import web


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(web, "LONGEST_PAUSE", 0.01)
    with serving() as found:
        yield found


def parquet(**columns: Sequence[object]) -> bytes:
    made = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), made, row_group_size=5)
    return bytes(made.getvalue())


def test_images_that_a_table_names_are_fetched(site: Site, tmp_path: Path) -> None:
    urls = [f"{site.url}/{i}.jpg?size=big" for i in range(12)]
    site.files = {f"/{i}.jpg": jpeg(i) for i in range(9)} | {"/9.jpg": b"<html>"}
    site.statuses = {"/3.jpg": [503], "/4.jpg": [500, 429], "/10.jpg": [403]}
    site.cut = {"/5.jpg": [100]}
    (tmp_path / "laion.parquet").write_bytes(parquet(URL=urls, TEXT=["x"] * 12))
    corpus = pack(str(tmp_path / "laion.parquet"), out=str(tmp_path / "out"), max_rejected=0.5)
    assert {row["key"]: row["image"] for row in rows(corpus)} == {
        urls[i]: jpeg(i) for i in range(9)
    }
    table = store.read_table(f"{corpus.path}/rejected.parquet").to_pylist()
    told = {row["uri"]: (row["reason"], row["detail"]) for row in table}
    assert told.pop(urls[9])[0] == "not_an_image"
    assert told == {
        urls[10]: ("unreadable", "HTTP 403 Forbidden"),
        urls[11]: ("missing", "HTTP 404 Not Found"),
    }
    assert site.asked["/4.jpg"] == 3
    assert site.asked["/10.jpg"] == site.asked["/11.jpg"] == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_tables_and_tars_are_read_where_they_are(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr(web, "BUFFER", 500)  # so that connections break in the middle
    site.ranges = ranges
    images: list[object] = [jpeg(i) for i in range(20)]
    labels: list[object] = ["cat", "dog"] * 10
    members = tar(samples(0, 6))
    pixels = pictures(4)
    site.files = {
        "/d/t.parquet": parquet(image=images, label=labels),
        "/d/t.csv": b"path,label\nx/1.jpg,cat\n../2.jpg,dog\n",
        "/d/t.csv.gz": gzip.compress(b"path,label\nx/1.jpg,cat\n../2.jpg,dog\n"),
        "/d/x/1.jpg": jpeg(1),
        "/2.jpg": jpeg(2),
        "/a.tar": members,
        "/a.tgz": gzip.compress(members),
        "/a.tbz2": bz2.compress(members),
        "/a.tar.xz": lzma.compress(members),
        "/a.tar.zst": zstd(members),
        "/train-images-idx3-ubyte.gz": gzip.compress(idx(pixels)),
        "/train-labels-idx1-ubyte": idx(numbers(4)),
    }
    # The first three ask whether it is there.
    site.cut = {
        "/a.tar": [2000] * 5,
        "/a.tgz": [3000] * 4,
        "/a.tar.zst": [3000] * 4,
        "/d/t.parquet": [0] * 3 + [2000] * 2,
    }
    expected = {
        "/d/t.parquet?download=true": [f"t.parquet/{i:08d}" for i in range(20)],
        "/d/t.csv": ["x/1.jpg", "../2.jpg"],
        "/a.tar": [f"a/{i:03d}" for i in range(6)],
        "/a.tgz": [f"a/{i:03d}" for i in range(6)],
        "/a.tbz2": [f"a/{i:03d}" for i in range(6)],
        "/a.tar.xz?download=1": [f"a/{i:03d}" for i in range(6)],
        "/a.tar.zst": [f"a/{i:03d}" for i in range(6)],
        "/train-images-idx3-ubyte.gz": [f"train/{i:05d}" for i in range(4)],
        "/{2,d/x/1}.jpg": ["2.jpg", "d/x/1.jpg"],
        "/d/t.csv.gz?download=1": ["x/1.jpg", "../2.jpg"],
    }
    for n, (path, keys) in enumerate(expected.items()):
        listing = list_source(site.url + path)
        found = pack(listing, out=str(tmp_path / str(n)), rows_per_shard=6)
        assert sorted(row["key"] for row in rows(found)) == sorted(keys), path
        assert not found.rejected
    by_key = {row["key"]: row["image"] for row in rows(store.open_corpus(str(tmp_path / "0")))}
    assert by_key == {f"t.parquet/{i:08d}": jpeg(i) for i in range(20)}
    assert {row["image"] for row in rows(store.open_corpus(str(tmp_path / "2")))} == {
        jpeg(i) for i in range(6)
    }


def test_what_a_server_refuses_is_named_with_its_url(site: Site, tmp_path: Path) -> None:
    site.statuses = {"/busy.csv": [503] * 99, "/mine.csv": [403] * 99, "/a.tar": [200]}
    site.files = {"/a.tar": b"nothing" * 300, "/folder/": b"<html>", "/t.csv": b"path\n1.jpg\n"}
    mistakes = [
        ("/busy.csv", f"cannot read {site.url}/busy.csv: HTTP 503 Service Unavailable"),
        ("/mine.csv", f"cannot read {site.url}/mine.csv: HTTP 403 Forbidden; get the permission"),
        ("/gone.csv", "there is no such file or folder"),
        ("/a.tar", f"{site.url}/a.tar is not a readable tar"),
        ("/folder/", "a source is a folder"),
        ("/*.tar", "a web server lists no files; name the files themselves"),
    ]
    for path, message in mistakes:
        with pytest.raises(DataError) as caught:
            list_source(site.url + path)
        assert message in str(caught.value)
        assert f"data='{site.url}{path}'" in str(caught.value)
    with pytest.raises(MissingSourceError):
        list_source(site.url + "/gone.csv")
    with pytest.raises(DataError, match=r"1 of 1 images \(100.0%\) cannot be read \(missing: 1"):
        pack(site.url + "/t.csv", out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="is only read from; set storage to a folder"):
        store.kept(f"{site.url}/runs", "storage")


def test_no_waiting_is_endless(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MOST_BYTES", 5000)
    site.headers = {"Retry-After": "3600"}
    site.files = {"/1.jpg": jpeg(1), "/big.jpg": b"x" * 6000}
    site.statuses = {"/1.jpg": [429]}
    assert store.fetch(f"{site.url}/1.jpg") == jpeg(1)
    with pytest.raises(OSError, match="it has more than 5,000 bytes"):
        store.fetch(f"{site.url}/big.jpg")
    monkeypatch.setattr(web, "LONGEST", 0)
    with pytest.raises(OSError, match="it took more than 0 s"):
        store.fetch(f"{site.url}/1.jpg")
    dead = site.url.rpartition(":")[0] + ":1"
    with pytest.raises(OSError, match=r"^Failed to establish a new connection: .*refused"):
        store.fetch(f"{dead}/1.jpg")


def test_a_file_that_changes_while_it_is_read_is_named(site: Site) -> None:
    members = tar(samples(0, 6))
    site.files = {"/a.tar": members}
    site.cut = {"/a.tar": [3000]}
    fs, inner = store.filesystem(f"{site.url}/a.tar")
    with fs.open_input_stream(inner) as stream:
        stream.read(1000)
        site.files["/a.tar"] = members + b"\0"
        with pytest.raises(OSError, match=r"a\.tar: it changed while it was read"):
            stream.read()
    with fs.open_input_file(inner) as file:
        site.files["/a.tar"] = members
        with pytest.raises(OSError, match=r"a\.tar: it changed while it was read"):
            file.read(10)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_need_not_say_how_long_a_file_is(site: Site, ranges: bool) -> None:
    site.files = {"/t.parquet": parquet(id=range(12), image=[jpeg(i) for i in range(12)])}
    site.sized, site.ranges = False, ranges
    assert list_source(f"{site.url}/t.parquet").rows == 12


def test_a_file_that_is_shorter_than_what_was_read_of_it_ends_the_reading(site: Site) -> None:
    site.files, site.sized, site.ranges = {"/a.csv": bytes(100)}, False, False
    with web._Beginning(f"{site.url}/a.csv") as stream:
        assert stream.readinto(bytearray(80)) == 80
        site.files["/a.csv"] = bytes(50)
        stream._disconnect()  # as where the connection breaks
        with pytest.raises(OSError, match="it changed while it was read"):
            stream.readinto(bytearray(80))


def test_images_that_have_gone_from_the_web_stay_in_a_run(site: Site, tmp_path: Path) -> None:
    train = fill(tmp_path / "train", {"a": 6, "b": 6}, start=100)
    urls: list[object] = [f"{site.url}/{i}.jpg" for i in range(6)]
    site.files = {f"/{i}.jpg": jpeg(i) for i in range(6)}
    table = tmp_path / "t.parquet"
    table.write_bytes(parquet(url=urls))
    settings = {"labeled": str(train), "unlabeled": str(table)}
    corpora = run(tmp_path, **settings)
    site.files = {}
    table.write_bytes(parquet(url=urls, text=["x"] * 6))
    assert run(tmp_path, **settings) == corpora


# ---------------------------------------------------------------------------- the Hugging Face Hub


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A Hub of one data set, which is not open to all."""
    template = site.url + "/{repo_id}/resolve/{revision}/{filename}"  # both are from HF_ENDPOINT
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", site.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    store_hub.hub.cache_clear()
    images: list[object] = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(10)]
    labels: list[object] = ["cat", "dog"] * 5
    site.token = "hf_mine"
    site.hub = {
        ".gitattributes": b"x",
        "README.md": b"# x",
        "data/train-00000-of-00002.parquet": parquet(image=images, label=labels),
        "data/train-00001-of-00002.parquet": parquet(image=images, label=labels),
        "tars/a.tar": tar(samples(0, 4)),
        "photos/cat/1.jpg": jpeg(1),
        "photos/dog/2.jpg": jpeg(2),
    }
    yield site
    huggingface_hub.HfFileSystem.clear_instance_cache()


def test_a_data_set_of_the_hub_is_read_where_it_is(hub: Site, tmp_path: Path) -> None:
    root = "hf://datasets/owner/name"
    expected = {
        "data/train-*.parquet": 20,
        "data/train-00001-of-00002.parquet": 10,
        "tars/a.tar": 4,
        "photos": 2,
    }
    for n, (path, count) in enumerate(expected.items()):
        hub.statuses = {f"/datasets/owner/name/resolve/main/{path}": [503, 429]}
        listing = list_source(f"{root}/{path}")
        assert listing.classes == ("cat", "dog"), path
        corpus = pack(listing, out=str(tmp_path / str(n)))
        assert corpus.rows == count, path
        assert all(row["uri"].startswith(f"{root}/") for row in rows(corpus))
    pack(f"{root}/data", out=str(tmp_path / "all"))
    (_, told) = list_source(f"{root}@main/photos/cat").items[0], list_source(root).notes
    assert told[-1] == "1 hidden files or folders left out"


def test_what_the_hub_refuses_is_named(hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    root = "hf://datasets/owner/name"
    with pytest.raises(DataError, match=r"no such file or folder; one that is not open to all nee"):
        list_source(f"{root}/gone.parquet")
    with pytest.raises(ConfigError, match="is named hf://datasets/OWNER/NAME"):
        list_source("hf://datasets/name")
    with pytest.raises(ConfigError, match="is only read from"):
        store.kept(f"{root}/runs", "storage")
    monkeypatch.delenv("HF_TOKEN")
    huggingface_hub.HfFileSystem.clear_instance_cache()
    store_hub.hub.cache_clear()
    with pytest.raises(DataError, match=r"data='hf://datasets/owner/name/photos'.*HF_TOKEN"):
        list_source(f"{root}/photos")
