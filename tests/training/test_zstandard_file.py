"""Logs that are compressed with Zstandard, whole, in frames and damaged."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from training.interactions import read_log
from training.tables import InputError

zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

HEADER = b"user_id,item_id,timestamp\n"
LINES = b"".join(b"u%d,i%d,1700000000\n" % (n % 70, n) for n in range(5000))


def read(folder: Path, content: bytes) -> int:
    path = folder / "log.csv.zst"
    path.write_bytes(content)
    return len(read_log(path).frame)


def test_a_compressed_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    assert read(tmp_path, zstd.compress(HEADER + LINES)) == 5000
    # As several writers that append leave it.
    assert read(tmp_path, zstd.compress(HEADER + LINES) + zstd.compress(LINES)) == 10_000


def test_parts_of_a_folder_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv.zst").write_bytes(zstd.compress(HEADER + LINES))
    (tmp_path / "part-1.csv").write_bytes(HEADER + LINES)
    assert len(read_log(tmp_path).frame) == 10_000


@pytest.mark.parametrize("cut", [5, 100, -9, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(InputError, match="the compressed file is damaged"):
        read(tmp_path, zstd.compress(HEADER + LINES)[:cut])


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    sums = {zstd.CompressionParameter.checksum_flag: 1}  # as the command zstd writes them
    packed = zstd.compress(HEADER + LINES, options=sums)
    for content, said in (
        (b"\x28\xb5\x2f\xfd more", "the compressed file is damaged"),
        (packed[:300] + bytes(60) + packed[360:], "the compressed file is damaged"),
        (zstd.compress(packed), "is packed twice"),
        (gzip.compress(packed), "is packed twice"),
    ):
        with pytest.raises(InputError, match=said):
            read(tmp_path, content)
