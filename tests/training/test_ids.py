"""Ids that mean the same and are not written the same."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.ids import Overlap, doubles
from training.tables import InputError

IDS = st.lists(st.integers(0, 9).map(str), min_size=1, max_size=9, unique=True)


@given(IDS, IDS, st.sampled_from(["{}.0", "0{}", " {} "]))
def test_none_shared_is_refused_and_says_how_they_differ(
    own: list[str], there: list[str], spelling: str
) -> None:
    ids = pl.Series([spelling.format(one) for one in own])
    found = Overlap.of(ids, there)
    both = set(own) & set(there)
    assert (found.ids, found.shared, found.near) == (len(own), 0, len(both))
    with pytest.raises(InputError) as caught:
        found.require("the log's items", "items.csv")
    assert f"none of the log's items, {len(own)}, is in items.csv" in str(caught.value)
    if both:
        least = min(both, key=spelling.format)
        assert f"({spelling.format(least)!r} here, {least!r} there)" in str(caught.value)
    else:
        assert "ids of something else" in str(caught.value)


def test_some_that_are_written_otherwise_are_counted() -> None:
    found = Overlap.of(pl.Series(["A", "b", "c", "c"]), ["a", "B", "c"])
    assert (found.ids, found.shared, found.near) == (3, 1, 2)
    assert found.require("the log's items", "x") == (
        "2 of the log's items, 3, are in x under another spelling alone ('A' here, 'a' there): "
        "write ids the same way in both"
    )
    assert Overlap.of(pl.Series(["c", "new"]), ["c"]).require("the log's items", "x") is None


def test_doubles_of_one_table() -> None:
    said = doubles(pl.Series("item_id", ["Ab", "aB", "7", "7.0", "x", "x"]))
    assert said is not None
    assert said.startswith("4 values of item_id differ from another")
    assert "'7' and '7.0'" in said
    assert doubles(pl.Series("item_id", ["07", "7", "x", "x"])) is None
