"""Shards of the users."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.shards import ALL, Shard

users = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(user=users, count=st.integers(1, 40))
def test_every_user_is_in_one_shard(user: str, count: int) -> None:
    assert sum(Shard(index, count).holds(user) for index in range(count)) == 1
    assert ALL.holds(user)


def test_a_user_stays_in_its_shard_from_run_to_run() -> None:
    for user, index in {"ann": 898, "bob": 463, "ü": 383, "b{o}b:/%": 862}.items():
        assert Shard(index, 1000).holds(user)


def test_shards_are_about_equal() -> None:
    held = sum(Shard(1, 4).holds(f"user-{n}") for n in range(10_000))
    assert 2300 < held < 2700


@given(count=st.integers(1, 1000), data=st.data())
def test_a_shard_is_read_as_it_is_written(count: int, data: st.DataObject) -> None:
    shard = Shard(data.draw(st.integers(0, count - 1)), count)
    assert Shard.parse(str(shard)) == shard


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "0/0", "a/b", "1/2/3", "²/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give I/N"):
        Shard.parse(text)
