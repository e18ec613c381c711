"""Where a list goes on: what its pages have shown, as text that callers need not understand.

Each item shown is the CRC-32 of its id, so a page never holds an item of an earlier one, whatever
has changed since and whatever worker answers. (Another item with the same CRC-32 is left out, too:
of 100,000 items, after 100 shown, one in 400 lists lacks one.)
"""

from __future__ import annotations

import base64
import binascii
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint32]


class CursorError(ValueError):
    """Text that is no cursor."""


def hash_of(item_id: str) -> int:
    return crc32(item_id.encode())


def write(shown: Hashes) -> str:
    body = shown.astype("<u4").tobytes()
    sealed = crc32(body).to_bytes(4, "little") + body
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def read(text: str) -> Hashes:
    """The items shown, in their order.

    Raises:
        CursorError
    """
    try:
        sealed = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        sealed = b""
    seal, body = sealed[:4], sealed[4:]
    if len(seal) < 4 or len(body) % 4 or crc32(body).to_bytes(4, "little") != seal:
        raise CursorError("after: give the `next` of the page before, as it is")
    return np.frombuffer(body, "<u4").astype(np.uint32)
