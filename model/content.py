"""What an item is, as features, and what each adds to an item's vector.

Features are the words of a title, categories and attributes, by a hash of each, so any language
works without a dictionary. Unlike a table of hash buckets (Weinberger et al., ICML 2009), this one
keeps the hashes that it knows: a feature that was never seen adds nothing, instead of what another
one means.

Names: F features of a table, D width.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

FORMAT = 1
MOST_KNOWN = 1 << 16
"""F, at most: the most frequent features."""
MOST_FEATURES = 64
"""Of one item; those beyond are left out."""
LONGEST = 2048
"""Characters of a name or title that are looked at."""

Scalar = str | float | bool
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
"""A code with leading zeros is none."""
_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese have no spaces between words."""


class ContentError(ValueError):
    """Bytes that are no content table that this code can use."""


@dataclass(frozen=True, slots=True)
class About:
    """What is said of an item. values: its attributes' scalars, by name."""

    title: str | None = None
    categories: Sequence[str] = ()
    values: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)


def feature_hashes(about: About) -> list[int]:
    """Of an item's features, each once, rising: at most `MOST_FEATURES`, categories before
    words before attributes. They do not depend on the order of categories and attributes."""
    names = dict.fromkeys(_names(about))
    return sorted({_hash(name) for name in islice(names, MOST_FEATURES)})


def _names(about: About) -> Iterator[str]:
    for category in sorted(set(map(_folded, about.categories))):
        yield f"category {category}"
    for word in _words(about.title or ""):
        yield f"word {word}"
    for name in sorted(about.values):
        for value in sorted(set(map(_told, about.values[name]))):
            yield f"{name}={value}"


def _told(value: Scalar) -> str:
    """A number goes by its power of two: one that changes a little is the same feature. It is the
    same one as text, as in a table."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        return f"'{_folded(str(value))}"
    number = float(value)
    return f"{'-' if number < 0 else ''}2^{math.frexp(number)[1]}" if number else "0"


def _words(title: str) -> Iterator[str]:
    """Where a script has no spaces between words: pairs of characters."""
    for word in _WORD.findall(_folded(title)):
        for run in _UNSPACED.findall(word):
            yield from (run[i : i + 2] for i in range(max(1, len(run) - 1)))
        yield from _UNSPACED.sub(" ", word).split()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text[:LONGEST]).casefold()


def _hash(name: str) -> int:
    digest = blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def places_in(known: Int64s, hashes: Sequence[int]) -> Int64s:
    """Where those of the hashes that are known lie; both rising."""
    wanted = np.array(hashes, np.int64)
    places = np.searchsorted(known, wanted)
    found: Int64s = places[known[np.minimum(places, len(known) - 1)] == wanted]
    return found


@dataclass(frozen=True, eq=False)
class Content:
    """What the features of items add to their vectors, and what an item gets that is nothing else.

    hashes: (F) of the features, rising; vectors: (F, D). An item's part of its vector is the sum of
    its features' vectors by the root of their number. An item that a model was not trained on has
    `scale` times that and `shift` (D), which are fitted so that it ranks as it deserves among the
    others.
    """

    hashes: Int64s
    vectors: Float32s
    shift: Float32s
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.hashes.dtype != np.int64 or self.hashes.ndim != 1:
            raise ContentError("hashes are not int64 of one dimension")
        shape = len(self.hashes), len(self.shift)
        for name, value in (("vectors", self.vectors), ("shift", self.shift)):
            if value.dtype != np.float32 or value.shape != shape[name == "shift" :]:
                raise ContentError(f"{name} is not float32 of shape {shape[name == 'shift' :]}")
            if not np.isfinite(value).all():
                raise ContentError(f"{name} is not finite")
        rising = (self.hashes[1:] > self.hashes[:-1]).all()
        if not 1 <= len(self.hashes) <= MOST_KNOWN or not rising:
            raise ContentError(f"hashes are not 1 to {MOST_KNOWN} rising ones")
        if not math.isfinite(self.scale):
            raise ContentError("scale is not finite")

    def updated(self, hashes: Int64s, vectors: Float32s) -> Content:
        """With these features' vectors; others stay, as far as there is room."""
        left = np.flatnonzero(~np.isin(self.hashes, hashes))[: MOST_KNOWN - len(hashes)]
        together = np.concatenate([hashes, self.hashes[left]])
        order = np.argsort(together)
        found = np.concatenate([vectors, self.vectors[left]])[order]
        return replace(self, hashes=together[order], vectors=found)

    def part_of(self, about: About) -> Float32s:
        """(D) What an item's features add to its vector."""
        places = places_in(self.hashes, feature_hashes(about))
        total: Float32s = self.vectors[places].sum(0)
        return total / np.float32(max(1, len(places)) ** 0.5)

    def vector(self, about: About) -> Float32s:
        """(D) Of an item that the model was not trained on."""
        found: Float32s = np.float32(self.scale) * self.part_of(about) + self.shift
        return found

    @classmethod
    def side_by_side(cls, members: Sequence[Content]) -> Content:
        """Of an ensemble's members, which have the same features and scale."""
        vectors, shift = [own.vectors for own in members], [own.shift for own in members]
        first = members[0]
        return cls(
            first.hashes, np.concatenate(vectors, axis=1), np.concatenate(shift), first.scale
        )

    def of_member(self, number: int, count: int) -> Content:
        """That of one of so many members; the first has number 0."""
        vectors, shift = (np.split(own, count, -1)[number] for own in (self.vectors, self.shift))
        return Content(self.hashes, vectors, shift, self.scale)

    def to_bytes(self) -> bytes:
        return save(
            {
                "format": np.array([FORMAT]),
                "hashes": self.hashes,
                "vectors": np.ascontiguousarray(self.vectors),
                "shift": self.shift,
                "scale": np.array([self.scale]),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, width: int) -> Content:
        """What `to_bytes` gave; width: D. Raises ContentError."""
        if len(data) > content_bytes(width):
            raise ContentError(f"it has more than {content_bytes(width):,} bytes")
        try:
            parts = load(data)
            (found,), (scale,) = parts.pop("format").tolist(), parts.pop("scale").tolist()
            if found != FORMAT:
                raise ContentError(f"it has format {found}, not {FORMAT}")
            content = cls(parts["hashes"], parts["vectors"], parts["shift"], scale)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ContentError):
                raise
            raise ContentError(f"it is damaged: {error}") from None
        if len(content.shift) != width:
            raise ContentError(f"its vectors are {len(content.shift)} wide, the model's {width}")
        return content


def content_bytes(width: int) -> int:
    """Most bytes of the table of a model of this width."""
    return (1 << 20) + MOST_KNOWN * (8 + 4 * width)
