"""Where a list goes on, as text that callers need not understand and can't make up.

A list of recommendations goes on from what its pages have shown. Each item shown is the CRC-32 of
its id, so a page never holds an item of an earlier one, whatever has changed since and whatever
worker answers. (Another item with the same CRC-32 is left out, too: of 100,000 items, after 100
shown, one in 400 lists lacks one.) The catalogue's own list goes on from a place in it,
the list of users from one in the store.

Nothing is read of a text that this service has not written: it begins with an HMAC-SHA256 of the
rest (RFC 2104), cut to 16 bytes, by a key that all its processes have of the store:

    <ns>:cursors   string  the key
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
from typing import Literal, NamedTuple
from urllib.parse import quote
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from service.catalogue.item_listing import Place
from service.store.client import Store
from service.store.errors import StoreError

logger = logging.getLogger(__name__)

Hashes = NDArray[np.uint32]
Kind = Literal["shown", "place", "users"]

KEY_BYTES, _TAG_BYTES, _HASH_BYTES = 32, 16, 4
LONGEST_PLACE = 2**16
"""Bytes of a place in the catalogue, with the title there: more than a URL holds."""


class UsersPlace(NamedTuple):
    """Where a list of the store's users goes on. `node`: which of its servers, "" the only one;
    `scan`: the cursor of SCAN there."""

    node: str
    scan: str


class CursorError(ValueError):
    """Text that is no cursor of this service."""


class Seal:
    """Args:
    key: what all processes of a service have, and nobody else.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def close(self, kind: Kind, body: bytes) -> str:
        sealed = base64.urlsafe_b64encode(self._tag(kind, body) + body)
        return sealed.decode().rstrip("=")

    def open(self, kind: Kind, text: str, longest: int) -> bytes:
        """What was closed, of at most so many bytes.

        Raises:
            CursorError
        """
        sealed = b""
        if len(text) <= -(-4 * (_TAG_BYTES + longest) // 3):
            try:
                padded = text.encode("ascii") + b"=" * (-len(text) % 4)
                sealed = base64.b64decode(padded, b"-_", validate=True)
            except (ValueError, binascii.Error):
                pass
        tag, body = sealed[:_TAG_BYTES], sealed[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(kind, body)):
            raise CursorError(
                "after: give the `next` of the page before, as it is; where that does not help, "
                "begin anew without it"
            )
        return body

    def _tag(self, kind: Kind, body: bytes) -> bytes:
        whole = hmac.digest(self._key, kind.encode() + b"\0" + body, hashlib.sha256)
        return whole[:_TAG_BYTES]


async def shared_seal(store: Store, *, namespace: str = "tim4rec") -> Seal:
    """The seal of all processes on this store; the first one makes its key.

    Raises:
        StoreError: the store does not answer.
    """
    name = f"{quote(namespace, safe='')}:cursors"
    key: bytes | None = await store.request(("GET", name))
    if key is None:
        new = secrets.token_bytes(KEY_BYTES)
        try:
            await store.request(("SET", name, new, "NX"))
            key = await store.request(("GET", name))
        except StoreError as error:  # it is full, or its replicas are away
            logger.warning("cursors are of this process only, for their key is not kept: %s", error)
        key = key or new
    return Seal(key)


def hash_of(item_id: str) -> int:
    return crc32(item_id.encode())


def write_shown(seal: Seal, shown: Hashes) -> str:
    return seal.close("shown", shown.astype("<u4").tobytes())


def read_shown(seal: Seal, text: str, most: int) -> Hashes:
    """The items shown, in their order, at most so many.

    Raises:
        CursorError
    """
    body = seal.open("shown", text, _HASH_BYTES * most)
    return np.frombuffer(body, "<u4").astype(np.uint32)


def write_place(seal: Seal, place: Place) -> str:
    return seal.close("place", json.dumps(place, ensure_ascii=False).encode())


def read_place(seal: Seal, text: str) -> Place:
    """Raises CursorError."""
    section, title, item_id = json.loads(seal.open("place", text, LONGEST_PLACE))
    return section, title, item_id


def write_users(seal: Seal, place: UsersPlace) -> str:
    return seal.close("users", json.dumps(place).encode())


def read_users(seal: Seal, text: str) -> UsersPlace:
    """Raises CursorError."""
    return UsersPlace(*json.loads(seal.open("users", text, LONGEST_PLACE)))
