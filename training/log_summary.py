"""What an interaction log holds, and what in it is suspicious, before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from model import UNKNOWN_TIME
from training.dataset import codes, k_core
from training.time_span import TimeSpan

LISTED = 3
DAY_MS = 86_400_000
BUSY_DAY = 1000
"""So many interactions of a user in a day are hardly a person's."""
LARGE_SHARE = 0.2
"""Of all rows: more than one user, or one moment, has by itself."""
LEAST_SHARED = 100


@dataclass(frozen=True, slots=True)
class Gap:
    """Two times, ms, with no interaction of anybody between them."""

    from_ms: int
    to_ms: int


@dataclass(frozen=True, slots=True)
class BusyUser:
    """rows: of the user in all; busiest: on one day."""

    user_id: str
    rows: int
    busiest: int


@dataclass(frozen=True, slots=True)
class LogSummary:
    """tied: rows with the time of another one of the same user; tied_users: whose they are.
    repeats: rows with user, item, time and kind of an earlier one. whole_days: every time is at
    midnight. moment: the commonest time, ms, and its rows, where those are a large share.
    kinds: rows by kind, the most first. busy: users with very many rows, the most first.
    """

    rows: int
    users: int
    items: int
    span: TimeSpan
    gaps: tuple[Gap, ...]
    tied: int
    tied_users: int
    repeats: int
    whole_days: bool
    moment: tuple[int, int] | None
    kinds: dict[str | None, int]
    busy: tuple[BusyUser, ...]
    busy_users: int

    @classmethod
    def of(cls, frame: pl.DataFrame) -> LogSummary:
        """Of user_id, item_id, time_ms and kind, in the order that `read_log` gives."""
        known = frame["time_ms"].filter(frame["time_ms"] != UNKNOWN_TIME)
        tied = _tied(frame)
        commonest = known.value_counts().sort("count", descending=True).head(1)
        moment = None
        if len(commonest) and commonest["count"][0] > _large(frame):
            moment = int(commonest["time_ms"][0]), int(commonest["count"][0])
        busy = _busy(frame)
        return cls(
            rows=len(frame),
            users=frame["user_id"].n_unique(),
            items=frame["item_id"].n_unique(),
            span=TimeSpan.of(frame["time_ms"]),
            gaps=_gaps(known),
            tied=len(tied),
            tied_users=tied["user_id"].n_unique(),
            repeats=len(tied) - len(tied.unique()),
            whole_days=len(known) > 0 and bool((known % DAY_MS == 0).all()),
            moment=moment,
            kinds=dict(frame["kind"].value_counts(sort=True).iter_rows()),
            busy=tuple(BusyUser(*row) for row in busy.head(LISTED).iter_rows()),
            busy_users=len(busy),
        )


@dataclass(frozen=True, slots=True)
class CoreLoss:
    """What a core leaves out of a log: of how many users, items and rows."""

    core_users: int
    core_items: int
    users: tuple[int, int]
    items: tuple[int, int]
    rows: tuple[int, int]

    @classmethod
    def of(cls, frame: pl.DataFrame, core_users: int, core_items: int) -> CoreLoss:
        """Of user_id and item_id."""
        users, user_ids = codes(frame["user_id"])
        items, item_ids = codes(frame["item_id"])
        kept = frame.filter(pl.Series(k_core(users, items, core_users, core_items)))
        return cls(
            core_users,
            core_items,
            (len(user_ids) - kept["user_id"].n_unique(), len(user_ids)),
            (len(item_ids) - kept["item_id"].n_unique(), len(item_ids)),
            (len(frame) - len(kept), len(frame)),
        )

    def __str__(self) -> str:
        if not self.rows[0]:
            return "the core leaves nothing out"
        if self.core_users == self.core_items:
            fewer = f"fewer than {self.core_users} interactions"
        else:
            fewer = f"fewer than {self.core_users} interactions a user or {self.core_items} an item"
        return (
            f"{_part(*self.users)} users, {_part(*self.items)} items and {_part(*self.rows)} rows "
            f"dropped by the core ({fewer})"
        )


def _part(some: int, of: int) -> str:
    return f"{some:,} of {of:,}"


def _large(frame: pl.DataFrame) -> float:
    """More rows than this are a large share; of few rows a share says nothing."""
    return LARGE_SHARE * max(len(frame), LEAST_SHARED)


def _tied(frame: pl.DataFrame) -> pl.DataFrame:
    same = (
        (pl.col("user_id") == pl.col("user_id").shift(1))
        & (pl.col("time_ms") == pl.col("time_ms").shift(1))
        & (pl.col("time_ms") != UNKNOWN_TIME)
    ).fill_null(False)
    return frame.select("user_id", "item_id", "time_ms", "kind").filter(
        same | same.shift(-1, fill_value=False)
    )


def _gaps(known: pl.Series) -> tuple[Gap, ...]:
    times = known.unique().sort()
    after = pl.DataFrame({"from": times, "to": times.shift(-1)}).drop_nulls()
    longest = after.top_k(LISTED, by=pl.col("to") - pl.col("from"))
    return tuple(Gap(*row) for row in longest.iter_rows())


def _busy(frame: pl.DataFrame) -> pl.DataFrame:
    days = (
        frame.filter(pl.col("time_ms") != UNKNOWN_TIME)
        .group_by("user_id", pl.col("time_ms") // DAY_MS)
        .len()
        .group_by("user_id")
        .agg(pl.col("len").max().alias("busiest"))
    )
    rows = frame.group_by("user_id").len("rows").join(days, on="user_id", how="left")
    least = _large(frame)
    return (
        rows.with_columns(pl.col("busiest").fill_null(0))
        .filter((pl.col("rows") > least) | (pl.col("busiest") >= BUSY_DAY))
        .sort("rows", "user_id", descending=[True, False])
    )
