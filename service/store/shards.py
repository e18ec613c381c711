"""Users divided among jobs that run side by side, each with a part of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def user_hash(user_id: str) -> int:
    """64 bits that place a user: in the part `user_hash(user_id) % count` of `count`."""
    digest = hashlib.blake2b(user_id.encode(), digest_size=8, person=b"tim4rec-shard")
    return int.from_bytes(digest.digest(), "big")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of the users, by a hash of the id: part `index`, from 0.

    The hash is always the same one, so a user stays in the same part whatever the job, the machine
    or the run.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"shard {self}: give I/N with I from 0 to N-1, as in 0/4, 1/4, 2/4 and 3/4"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that is written `index/count`. Raises ValueError."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ValueError(f"shard {text!r}: give I/N, as in 0/4, 1/4, 2/4 and 3/4")
        return cls(int(index), int(count))

    def holds(self, user_id: str) -> bool:
        if self.count == 1:
            return True
        return user_hash(user_id) % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


ALL = Shard(0, 1)
