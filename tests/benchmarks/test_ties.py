from collections import Counter
from itertools import combinations, groupby
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ties import as_most_have, by_item
from model import UNKNOWN_TIME
from training.interactions import read_log

DATA = Path(__file__).parents[2] / "../shared/data"
WHOLE, HALF = (
    DATA / name / "interactions.csv.gz" for name in ("ml-1m-order", "ml-1m-users-1-2999")
)
TIMES = st.one_of(st.integers(0, 3), st.just(UNKNOWN_TIME))
HISTORIES = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdef"), TIMES), min_size=1, max_size=8), max_size=12
)


def frame(histories: list[list[tuple[str, int]]]) -> pl.DataFrame:
    rows = [(f"u{u}", item, time) for u, own in enumerate(histories) for item, time in own]
    schema = {"user_id": pl.String, "item_id": pl.String, "time_ms": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def histories_of(log: pl.DataFrame) -> list[list[tuple[str, int]]]:
    return [
        [(item, time) for _, item, time in rows]
        for _, rows in groupby(log.iter_rows(), key=lambda row: row[0])
    ]


def two_by_two(histories: list[list[tuple[str, int]]]) -> list[list[tuple[str, int]]]:
    """The same rule, counted pair by pair."""
    votes = Counter(
        (a, b)
        for own in histories
        for (a, t), (b, s) in combinations(own[:-2], 2)
        if t == s != UNKNOWN_TIME
    )
    found = []
    for own in histories:
        *rest, (a, t), (b, s) = [("", -1), *own]
        if len(own) > 1 and t == s != UNKNOWN_TIME and votes[b, a] > votes[a, b]:
            found.append([*rest[1:], (b, s), (a, t)])
        else:
            found.append(own)
    return found


@given(HISTORIES)
def test_the_last_two_of_one_time_stand_as_most_others_have_them(
    histories: list[list[tuple[str, int]]],
) -> None:
    assert histories_of(as_most_have(frame(histories))) == two_by_two(histories)


def test_the_last_two_are_swapped_where_two_others_against_one_say_so() -> None:
    end = [("y", 5), ("z", 6)]
    others = [[("b", 1), ("a", 1), *end], [("b", 2), ("x", 2), ("a", 2), *end]]
    against = [("a", 1), ("b", 1), *end]
    log = frame([*others, against, [("q", 1), ("a", 7), ("b", 7)], [("a", 7), ("b", 8)]])
    found = histories_of(as_most_have(log))
    assert found == [*others, against, [("q", 1), ("b", 7), ("a", 7)], [("a", 7), ("b", 8)]]


def test_by_item_numbers_come_as_numbers_and_users_stay_together() -> None:
    log = frame([[("10", 1), ("9", 1), ("2", 0)], [("b", 1), ("a", 1)]])
    assert histories_of(by_item(log)) == [[("2", 0), ("9", 1), ("10", 1)], [("a", 1), ("b", 1)]]


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE.exists() or not HALF.exists(), reason=f"needs {WHOLE} and {HALF}")
def test_movielens_last_two_are_as_in_the_publishers_file() -> None:
    """Where the log's last two are not in its own order: 40 % of those of one time."""
    key = ["user_id", "item_id"]
    source = read_log(HALF).frame.select(*key, place=pl.int_range(pl.len()))
    log = read_log(WHOLE).frame

    def right(frame: pl.DataFrame) -> float:
        last = (
            frame.with_row_index()
            .join(source, on=key)
            .sort("index")
            .group_by("user_id", maintain_order=True)
            .tail(2)
            .group_by("user_id", maintain_order=True)
            .agg(pl.col("time_ms").n_unique().alias("times"), pl.col("place"))
            .filter(pl.col("times") == 1)
        )
        places = last["place"].list
        return float((places.get(0) < places.get(1)).mean())  # type: ignore[arg-type]

    assert 0.55 < right(log) < 0.65
    assert right(as_most_have(log)) > 0.88
