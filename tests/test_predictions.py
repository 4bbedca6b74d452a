"""`ns-ray predict`: tables of what a model sees."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from broken_files import broken, jpeg
from served import CLASSES, make_bundle
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.data.packing import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pile")
    for i in range(3):
        (place / f"{i}.jpg").write_bytes(jpeg(i))
    (place / "cut.jpg").write_bytes(broken()["cut.jpg"][0])
    return place


def predict(folder: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["predict", "--bundle", str(folder), *arguments])
    return done.exit_code, done.output


@pytest.mark.slow
def test_csv_and_parquet_hold_the_same_rows(folder: Path, pile: Path, tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        code, text = predict(
            folder, str(pile), "--top-k", "2", "--format", kind, "--out", str(tmp_path / kind)
        )
        assert code == 0, text
        assert "3 images, 1 could not be used" in text
    with (tmp_path / "csv").open() as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "parquet").to_pylist()
    assert len(rows) == len(table) == 3 * 2 + 1
    for row, other in zip(rows, table, strict=True):
        assert row["filename"] == other["filename"]
        assert (row["label"] or None) == other["label"]
        if other["error"] is None:
            assert float(row["prob"]) == pytest.approx(other["prob"], abs=1e-6)
            assert other["label"] == CLASSES[other["index"]]
    (bad,) = [row for row in table if row["error"] is not None]
    assert bad["filename"].endswith("cut.jpg")
    assert bad["error"].startswith("truncated")
    assert [row["rank"] for row in table if row["error"] is None] == [1, 2] * 3


def test_what_is_left_out_or_not_there_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "0.cr2").write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    table = tmp_path / "t.csv"
    table.write_text("path\n0.jpg\n0.JPG\nsub\n")
    command = ["predict", "--bundle", str(folder), str(tmp_path), str(table), "--format", "csv"]
    done = CliRunner().invoke(app, command)
    assert f"{tmp_path}: 2 files are no images by their name" in done.stderr
    rows = [row for row in csv.DictReader(done.stdout.splitlines()) if row["error"]]
    assert [row["error"] for row in rows] == [
        "missing: there is no such file",
        "unreadable: it is a folder",
    ]


def test_a_packed_corpus_is_a_source_too(folder: Path, pile: Path, tmp_path: Path) -> None:
    packed = pack(str(pile), out=str(tmp_path / "packed"), max_rejected=0.5, rows_per_shard=2)
    code, text = predict(folder, packed.path, "--top-k", "1", "--out", str(tmp_path / "csv"))
    assert code == 0, text
    assert "3 images, 0 could not be used" in text


@pytest.mark.slow
def test_json_is_in_the_words_of_the_server(folder: Path, pile: Path) -> None:
    code, text = predict(folder, str(pile), "--format", "json", "--top-k", "1")
    assert code == 0
    answer = json.loads(text)
    assert len(answer) == 4
    assert {tuple(sorted(entry)) for entry in answer} == {
        ("error", "filename"),
        ("filename", "predictions"),
    }
    good = next(entry for entry in answer if "predictions" in entry)
    assert set(good["predictions"][0]) == {"label", "score"}
    assert predict(folder, str(pile), "--json", "--top-k", "1") == (0, text)


def test_an_image_named_twice_is_two(folder: Path, pile: Path) -> None:
    image = str(pile / "0.jpg")
    code, text = predict(folder, image, image, "--format", "json", "--top-k", "2")
    assert code == 0
    first, second = json.loads(text)
    assert first == second
    assert len(first["predictions"]) == 2


def test_the_table_shows_every_image(folder: Path, pile: Path) -> None:
    code, text = predict(folder, str(pile / "0.jpg"), str(pile / "1.jpg"))
    assert code == 0
    assert "0.jpg" in text
    assert "1.jpg" in text
    assert sum(text.count(name) for name in CLASSES) == 6


def test_other_sources(folder: Path, pile: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"image_path\n{pile / '0.jpg'}\n{pile / '2.jpg'}\n")
    code, text = predict(folder, str(table), "--format", "csv", "--top-k", "1")
    assert code == 0
    assert [line.split(",")[0][-5:] for line in text.splitlines()[1:]] == ["0.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--format", "xml"], 2, "'csv', 'json', 'parquet'"),
        (["--format", "parquet"], 2, "--out"),
        (["--top-k", "0"], 2, "--top-k 0"),
        (["--format", "csv", "--json"], 2, "--format csv and --json: give one of them"),
    ],
)
def test_wrong_options(
    folder: Path, pile: Path, arguments: list[str], code: int, words: str
) -> None:
    found, text = predict(folder, str(pile), *arguments)
    assert found == code
    assert words in text


def test_nothing_to_see_is_exit_3(folder: Path, pile: Path, tmp_path: Path) -> None:
    assert predict(folder, str(tmp_path / "nothing"))[0] == 3
    code, text = predict(folder, str(pile / "cut.jpg"))
    assert code == 3
    assert "truncated" in text
