"""A log sorted in files: the same rows as in memory, and how much memory it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.rows import read_rows
from cli.spool import spooled_log
from service.store.shards import ALL, Shard
from tests.cli.conftest import BASE_MS
from tests.depth import examples
from training import csv_file
from training.tables import InputError

LATEST = 2**62


def spooled(path: Path, rows_at_once: int, shard: Shard = ALL, skip: bool = False) -> pl.DataFrame:
    with spooled_log(
        path, shard=shard, rows_at_once=rows_at_once, temp_dir=path.parent, skip_bad_rows=skip
    ) as log:
        log.sort(LATEST, lambda rows: None)
        frames = list(log.frames())
        assert log.rows == sum(map(len, frames))
        users = [user for frame in frames for user in frame["user_id"].unique()]
        assert len(users) == len(set(users)), "a user in two frames"
    assert not list(path.parent.glob("tim4rec-import-*"))
    columns = {
        "user_id": pl.String, "item_id": pl.String, "time_ms": pl.Int64, "kind": pl.String,
        "weight": pl.Float64, "row": pl.Int64,
    }  # fmt: skip
    empty = pl.DataFrame(schema=columns)
    return pl.concat([empty, *frames]).sort("user_id", "row")


rows = st.tuples(
    st.sampled_from(["ann", "bob", "cy", "dee", "ü", '"quoted, twice"']),
    st.sampled_from(["i1", "i2", "i" * 257]),
    st.one_of(st.just(""), st.integers(BASE_MS, BASE_MS + 9), st.just("nonsense")),
    st.sampled_from(["", "view", "two words"]),
    st.sampled_from(["", "2.5"]),
)
COLUMNS = ["user_id", "item_id", "timestamp", "kind", "weight"]


@settings(max_examples=examples(10))
@given(
    log=st.lists(rows, min_size=1, max_size=40),
    rows_at_once=st.integers(1, 50),
    block=st.integers(1, 300),
    count=st.integers(1, 3),
    parquet=st.booleans(),
)
def test_it_gives_the_rows_that_reading_whole_gives(
    log: list[tuple[str, str, object, str, str]],
    rows_at_once: int,
    block: int,
    count: int,
    parquet: bool,
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "log"
        if parquet:
            texts = [tuple(map(str, row)) for row in log]
            pl.DataFrame(texts, COLUMNS, orient="row").write_parquet(path)
        else:
            lines = [",".join(map(str, row)) for row in [COLUMNS, *log]]
            path.write_text("\n".join(lines), encoding="utf-8")
        patch.setattr(csv_file, "BLOCK_CHARACTERS", block)
        patch.setattr(csv_file, "CHUNK_ROWS", max(1, block // 20))
        try:
            expected = read_rows(path, skip_bad_rows=True)
        except InputError:
            with pytest.raises(InputError, match="no interactions"):
                spooled(path, rows_at_once, skip=True)
            return
        parts = [
            spooled(path, rows_at_once, Shard(index, count), skip=True) for index in range(count)
        ]
        assert pl.concat(parts).sort("user_id", "row").equals(expected.sort("user_id", "row"))


def test_what_is_wrong_with_rows_is_said_of_all_spools_together(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    lines = [f"u{n},i,{BASE_MS}\nu{n},i,\nu{n},i,{BASE_MS - 1}" for n in range(30)]
    path.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    with pytest.raises(InputError, match="30 rows can't be read") as caught:
        spooled(path, 10)
    said = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in said[1:21]] == [f"  line {4 + 3 * n}" for n in range(20)]
    assert said[21] == "  and 10 more"
    assert len(spooled(path, 10, skip=True)) == 60


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"--temp-dir .*none: No such file"),
        spooled_log(
            tmp_path / "log", shard=ALL, rows_at_once=1, temp_dir=tmp_path / "none",
            skip_bad_rows=False,
        ),
    ):  # fmt: skip
        pass


GROWTH = """
import sys
from pathlib import Path
from cli.spool import spooled_log
from service.store.shards import ALL
from training import csv_file
csv_file.BLOCK_CHARACTERS = 1 << 20
def peak():
    # Not ru_maxrss, which begins at what the parent had.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
before, path = peak(), Path(sys.argv[1])
with spooled_log(
    path, shard=ALL, rows_at_once=int(sys.argv[2]), temp_dir=path.parent, skip_bad_rows=False
) as log:
    log.sort(2**62, lambda rows: None)
    assert sum(map(len, log.frames())) == 500_000
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_the_rows_at_once_not_by_the_log(tmp_path: Path) -> None:
    def id_of(count: int) -> pl.Expr:
        return pl.format("an-id-of-the-length-of-a-uuid-{}", pl.int_range(500_000) % count)

    path = tmp_path / "log.csv"
    time = BASE_MS + pl.int_range(500_000)
    pl.select(user_id=id_of(50_021), item_id=id_of(10_007), timestamp=time).write_csv(path)

    def growth(rows_at_once: int) -> int:
        """MiB, by which the peak is above what the imported modules take."""
        arguments = [sys.executable, "-c", GROWTH, str(path), str(rows_at_once)]
        return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)

    divided, whole = growth(25_000), growth(10**9)
    assert divided < 80 < 120 < whole, f"{divided} and {whole} MiB"
