"""Small logs to train and test on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from model import UNKNOWN_TIME
from training.interactions import Log

DAY_MS = 86_400_000
START_MS = 1_300_000_000_000
KINDS = ["tea", "hats", "wool", "maps"]


def make_log(rows: Sequence[tuple[str, str, int]]) -> Log:
    """A log of (user, item, ms), sorted as `read_log` sorts."""
    frame = pl.DataFrame(
        rows,
        schema={"user_id": pl.String, "item_id": pl.String, "time_ms": pl.Int64},
        orient="row",
    )
    unknown = (pl.col("time_ms") == UNKNOWN_TIME).any().over("user_id")
    key = pl.when(unknown).then(0).otherwise("time_ms")
    return Log(frame.with_columns(key=key).sort("user_id", "key", maintain_order=True).drop("key"))


def chain_log(users: int = 60, length: int = 24, items: int = 30, seed: int = 0) -> Log:
    """Users who walk a ring of items, mostly one place on, at random gaps: learnable in seconds."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        place, now = int(rng.integers(items)), START_MS + int(rng.integers(DAY_MS))
        for _ in range(int(rng.integers(length // 2, length + 1))):
            rows.append((f"u{user:03}", f"i{place:03}", now))
            place = (place + int(rng.choice([1, 1, 1, 2]))) % items
            now += int(rng.choice([0, 1000, 60_000, DAY_MS, 30 * DAY_MS]))
    return make_log(rows)


def ring_log(users: int = 450) -> Log:
    """Users who walk a ring of items, several at a time; a new item comes every now and then."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(users):
        item, hour = int(draw.integers(60)), int(draw.integers(400))
        for _ in range(8):
            item, hour = item + int(draw.integers(1, 4)), hour + int(draw.integers(0, 12))
            rows.append((f"u{user}", f"i{item % (50 + hour // 20)}", 10**12 + hour * DAY_MS // 24))
    return make_log(rows)


def drifting_log(users: int = 300, days: int = 5, length: int = 8) -> Log:
    """Users who walk a ring of 60 items, without coming back to one, some `length` steps a day. In
    a day a third of the items is replaced, and each user changes to steps of another length.
    """
    draw = np.random.default_rng(0)
    rows = []
    for user in range(users):
        had, place = set[int](), int(draw.integers(60))
        for ms in np.sort(draw.integers(days * DAY_MS, size=days * length)).tolist():
            begin, stride = 20 * ms // DAY_MS, (1, 3, 7)[(user + ms // DAY_MS) % 3]
            place += stride if draw.random() < 0.9 else int(draw.integers(60))
            while (item := begin + (place - begin) % 60) in had:
                place += 1
            had.add(item)
            rows.append((f"u{user}", f"i{item}", START_MS + ms))
    return make_log(rows)


def kinds_log(users: int = 240, seed: int = 0) -> Log:
    """Users who keep to items of one kind, of which new ones come all the time; item n is of the
    kind n % 4."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        kind, day = int(draw.integers(4)), int(draw.integers(100))
        for _ in range(8):
            day += int(draw.integers(1, 12))
            item = 4 * int(draw.integers(max(0, day // 4 - 8), day // 4 + 8)) + kind
            rows.append((f"u{user}", f"i{item}", 10**12 + day * DAY_MS))
    return make_log(rows)


def table_of(log: Log) -> pl.DataFrame:
    """What the items of a log of kinds are."""
    ids = log.frame["item_id"].unique().sort().to_list()
    kinds = [KINDS[int(item[1:]) % 4] for item in ids]
    return pl.DataFrame(
        {
            "item_id": ids,
            "title": [f"fine {kind} {item}" for item, kind in zip(ids, kinds, strict=True)],
            "categories": [[kind] for kind in kinds],
        }
    )
