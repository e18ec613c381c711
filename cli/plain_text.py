"""Small text files, packed or not."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

from cli.console import CommandError
from model.plain_file import read_bounded, read_plain
from model.strict_json import parse
from training.text_file import FAULTS


def parse_json(path: Path, text: str) -> Any:
    """Raises CommandError that names the file."""
    try:
        return parse(text, constants=True)  # what Python writes; no place here takes them
    except ValueError as error:
        raise CommandError(f"{path}: not readable as JSON: {error}") from None


def read_text(path: Path, most: int) -> str:
    """The text of a file that has at most so many bytes, packed and unpacked."""
    data = read_plain(path, most)
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                unpacked = read_bounded(file, most)
            if unpacked is None:
                raise CommandError(f"{path}: has more than {most:,} bytes unpacked")
            data = unpacked
        return data.decode("utf-8-sig")
    except (*FAULTS, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {error}: save it as UTF-8 text") from None
