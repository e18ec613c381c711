"""The order of interactions that a user has at one time, where a log leaves it open."""

from __future__ import annotations

import polars as pl

from model import UNKNOWN_TIME


def by_item(frame: pl.DataFrame) -> pl.DataFrame:
    """Equal times in the order of the items' ids, as numbers where they are: as programs have
    them that sort by time a file which is sorted by item.

    Args:
        frame: `user_id`, `item_id` and `time_ms`, a user's rows one after the other.
    """
    item = pl.col("item_id")
    by = [pl.col("user_id").rle_id(), "time_ms", item.cast(pl.Int64, strict=False), item]
    return frame.sort(by)


def as_most_have(frame: pl.DataFrame) -> pl.DataFrame:
    """A user's last two interactions, where their time is the same, in the order that most
    other users have these two items in at one time; as they are where no other has both.

    What the others have does not count their own last two, so the order is not learned from
    what a test asks for.

    Args:
        frame: `user_id`, `item_id` and `time_ms`, a user's rows one after the other.
    """
    rows = frame.select(
        "item_id",
        "time_ms",
        row=pl.int_range(pl.len(), dtype=pl.Int64),
        user=pl.col("user_id").rle_id(),
    ).with_columns(left=pl.col("row").max().over("user") - pl.col("row"))
    timed = rows.filter(pl.col("time_ms") != UNKNOWN_TIME)

    def pairs(of: pl.DataFrame) -> pl.DataFrame:
        """(row, item, other row, other item) of each two that one user has at one time."""
        return of.join(of, on=["user", "time_ms"], suffix="_next").filter(
            pl.col("row") < pl.col("row_next")
        )

    last = pairs(timed.filter(pl.col("left") < 2))
    both = ["item_id", "item_id_next"]
    back = {"item_id": "item_id_next", "item_id_next": "item_id"}
    asked = pl.concat([last.select(both), last.rename(back).select(both)]).unique()
    earlier = timed.filter(pl.col("left") >= 2).filter(
        pl.col("item_id").is_in(asked["item_id"].implode())
    )
    count = pairs(earlier).join(asked, on=both).group_by(both).len("users")
    votes = last.join(count, on=both, how="left").join(
        count.rename(back), on=both, how="left", suffix="_against"
    )
    wrong = votes.filter(pl.col("users_against").fill_null(0) > pl.col("users").fill_null(0))
    order = rows["row"].to_numpy().copy()
    order[wrong["row"].to_numpy()] = wrong["row_next"].to_numpy()
    order[wrong["row_next"].to_numpy()] = wrong["row"].to_numpy()
    return frame[order]


ORDERS = {"item": by_item, "usual": as_most_have}
