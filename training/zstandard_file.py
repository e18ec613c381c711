"""Files that are compressed with Zstandard."""

from __future__ import annotations

import io
import sys
from typing import IO, Any


class ZstandardFile(io.RawIOBase):
    """The bytes of a compressed file. What is damaged is an OSError, what is cut an EOFError."""

    def __init__(self, file: IO[bytes]) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        self._file, self._fault = zstd.ZstdFile(file), zstd.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            count: int = self._file.readinto(buffer)
            return count
        except self._fault as error:
            raise OSError(str(error)) from None
