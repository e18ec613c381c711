"""Text files as they come: packed or not, in the encoding that they say or that they are given.

Read are gzip, bzip2, xz, Zstandard and a zip archive of one file; UTF-8, and UTF-16 where its bytes
say so. What is something else is named for what it is.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from model.plain_file import open_plain
from training.tables import InputError
from training.zstandard_file import ZstandardFile

PARQUET = b"PAR1"
UNREADABLE = "\ufffd"
"""Stands for bytes that are no text in the encoding."""
FAULTS = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""How a file that is packed fails while it is read."""

_PEEKED = 4096
_ZEROS = 0.3
_ZIP = b"PK\x03\x04"
_PACKED: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": ZstandardFile,
}
_NAMED = {
    b"\x28\xb5\x2f\xfd": "is packed twice: unpack it first",
    b"\x1f\x9d": "is compressed with compress: unpack it first (gzip -d)",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    _ZIP: "is a zip archive in another: unpack it first",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook: save it as CSV (UTF-8)",
    b"ARROW1": "is an Arrow file: write it as Parquet",
    b"Obj\x01": "is an Avro file: write it as Parquet",
    b"ORC": "is an ORC file: write it as Parquet",
    b"SQLite format 3": "is an SQLite database: write the table as CSV",
    b"%PDF": "is a PDF: give the table as CSV",
    b"\x1f\x8b": "is packed twice: unpack it first",
    b"BZh": "is packed twice: unpack it first",
    PARQUET: "is Parquet in another archive: unpack it first",
}
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


@contextmanager
def open_text(path: Path, encoding: str | None) -> Iterator[tuple[TextIO, str]]:
    """A file's text, line ends as they are, and the name of its encoding.

    Args:
        encoding: of a file without a byte order mark; None: UTF-16 where the bytes say so, else
            UTF-8.

    Raises:
        InputError: it can't be opened, is no text, or `encoding` is none.
    """
    try:
        with open_plain(path) as file:
            stream = io.BufferedReader(cast("io.RawIOBase", _unpacked(path, file)), 1 << 16)
            head = stream.peek(_PEEKED)[:_PEEKED]
            fault = _fault(head)
            if fault is not None:
                raise InputError(f"{path}: {fault}")
            found = _encoding(path, head, encoding)
            yield io.TextIOWrapper(stream, found, errors="replace", newline=""), found
    except LookupError:
        raise InputError(f"--encoding {encoding}: there is no such encoding") from None
    except FAULTS as error:
        reason = getattr(error, "strerror", None) or f"the compressed file is damaged: {error}"
        raise InputError(f"{path}: {reason}") from error


def _unpacked(path: Path, file: IO[bytes]) -> IO[bytes]:
    head = file.read(8)
    file.seek(0)
    if head.startswith(_ZIP):
        return _only_member(path, file)
    for magic, opened in _PACKED.items():
        if head.startswith(magic):
            return cast("IO[bytes]", opened(file))
    return file


def _only_member(path: Path, file: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    if "[Content_Types].xml" in archive.namelist():
        raise InputError(f"{path}: is an Excel workbook: save it as CSV (UTF-8)")
    members = [
        one for one in archive.infolist()
        if not one.is_dir() and not one.filename.startswith("__MACOSX/")
    ]  # fmt: skip
    if len(members) != 1:
        raise InputError(
            f"{path}: is a zip archive of {len(members)} files: unpack it, and give the folder or "
            "one of the files"
        )
    try:
        return archive.open(members[0])
    except (RuntimeError, NotImplementedError) as error:  # a password, a rare compression
        raise InputError(f"{path}: {error}: unpack it first") from None


def _fault(head: bytes) -> str | None:
    """Why what begins so is no text of a table."""
    if not head:
        return "is empty"
    named = next((said for magic, said in _NAMED.items() if head.startswith(magic)), None)
    if named is not None:
        return named
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first, and give the folder or one of the files"
    if head.lstrip(b" \t\r\n\xef\xbb\xbf").startswith((b"{", b"[{")):
        return "looks like JSON: give CSV or Parquet; items also as JSON lines (*.jsonl)"
    return None


def _encoding(path: Path, head: bytes, given: str | None) -> str:
    for mark, encoding in _BOMS.items():
        if head.startswith(mark):
            return encoding
    if given is not None:
        return given
    # Text that is mostly ASCII has a zero in every other byte of UTF-16.
    nulls = [head[place::2].count(0) / len(head) for place in (0, 1)]
    if max(nulls) > _ZEROS and min(nulls) == 0:
        return "utf-16-be" if nulls[0] else "utf-16-le"
    if b"\0" in head:
        raise InputError(f"{path}: is no text: give CSV or Parquet")
    return "utf-8"
