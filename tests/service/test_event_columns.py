"""Stored events decoded as columns say what they say decoded one by one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.errors import RecordDamaged
from service.store.event_columns import event_columns
from service.store.events import MOVED, PLACED, NewEvent, packed, unpacked

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
times = st.integers(-(2**53), 2**53)
events = st.builds(
    NewEvent,
    uid=st.binary(min_size=8, max_size=8),
    item_id=texts,
    time_ms=st.none() | times,
    event_id=st.none() | texts,
    kind=st.none() | texts,
    weight=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


def as_stored(event: NewEvent, time_ms: int, bits: int) -> bytes:
    """As append.lua writes it; a moved event ends with the uid it was sent with."""
    given = packed(event)
    (head,) = struct.unpack_from(">H", given, 16)
    moved = b"sentwith" if bits & MOVED else b""
    return b"".join(
        (given[:8], struct.pack(">q", time_ms), given[8:16], struct.pack(">H", head | bits),
         given[18:], moved)
    )  # fmt: skip


@given(st.lists(st.tuples(events, times, st.sampled_from([0, PLACED, MOVED, PLACED | MOVED]))))
def test_columns_say_what_each_event_says(logged: list[tuple[NewEvent, int, int]]) -> None:
    values = [as_stored(event, at, bits) for event, at, bits in logged]
    columns = event_columns(values)
    expected = [
        (e.item_id, e.time_ms, e.given_ms, e.kind, e.weight, e.event_id)
        for e in (unpacked(1, value) for value in values)
    ]
    found = columns.with_columns(columns["timestamp"].dt.epoch("ms"))
    assert found.rows() == expected


@given(events, st.data())
def test_what_is_cut_off_or_no_text_is_damaged(event: NewEvent, data: st.DataObject) -> None:
    value = as_stored(event, 0, 0)
    sound = as_stored(NewEvent(b"-" * 8, "i"), 0, 0)
    short = value[: data.draw(st.integers(0, len(value) - len(event.item_id.encode())))]
    for damaged in (short, value + b"\xff"):
        with pytest.raises(RecordDamaged, match=r"^an event cannot be read: [^\n]*$"):
            event_columns([sound, damaged, sound])
