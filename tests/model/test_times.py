from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model import UNKNOWN_TIME
from model.time_columns import parse_times
from model.times import DATE_TIMES, DATES, EARLIEST_MS, LATEST_MS, NUMBER, iso, parse_time
from tests.depth import examples

ANY_MS = st.integers(EARLIEST_MS, LATEST_MS)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(timezones=st.none() | st.timezones() | st.just(UTC))
NUMBERS = st.one_of(
    st.floats(),
    st.integers(EARLIEST_MS * 4, LATEST_MS * 4),
    ANY_MS.map(lambda ms: ms / 1000),
    st.integers(-(10**6), 10**6).map(lambda n: n / 2000),  # halves of a millisecond
    st.integers(-3, 3).map(lambda n: 1e11 + n / 4),
    st.integers(int(4e14), 2**63 - 1),
    st.dates().map(lambda day: int(day.strftime("%Y%m%d"))),
    st.integers(20_260_700, 20_261_399),
    st.integers(20_260_228_235_900, 20_260_301_000_100),
)
TEXTS = st.one_of(
    st.text(),
    st.text("0123456789+-.eE_ :TZ٣"),
    st.from_regex(r" ?[+-]?[0-9]{0,14}\.?[0-9]{0,5}([eE][+-]?[0-9]{1,3})?\t?", fullmatch=True),
    st.from_regex(NUMBER, fullmatch=True),
    NUMBERS.map(str),
    MOMENTS.map(lambda moment: moment.isoformat()),
    st.sampled_from(["nan", "Infinity", "-inf", "1e400", "1_000", "", " ", "\x1c5", "2026-01-31 "]),
)


def one(value: object) -> int | None:
    try:
        return parse_time(value)
    except ValueError:
        return None


@pytest.mark.slow
@settings(max_examples=examples(300))
@given(st.lists(TEXTS, min_size=1, max_size=20), st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_column_is_read_as_each_of_its_values(texts: list[str], numbers: list[float]) -> None:
    expected = [UNKNOWN_TIME if not text.strip(" \t\r\n\xa0") else one(text) for text in texts]
    assert parse_times(pl.Series([*texts, None])).to_list() == [*expected, UNKNOWN_TIME]
    floats = [float(number) for number in numbers]
    assert parse_times(pl.Series([*floats, None])).to_list() == [*map(one, floats), UNKNOWN_TIME]
    whole = [number for number in numbers if isinstance(number, int)]
    column = pl.Series([*whole, None], dtype=pl.Int64)
    assert parse_times(column).to_list() == [*map(one, whole), UNKNOWN_TIME]


@settings(max_examples=examples(100))
@given(st.lists(st.datetimes(), min_size=1, max_size=20), st.sampled_from(["us", "ms", "ns"]))
def test_datetimes_are_read_as_their_text(moments: list[datetime], unit: str) -> None:
    if unit == "ns":  # which reach from 1677 to 2262
        moments = [moment.replace(year=1700 + moment.year % 500, day=1) for moment in moments]
    column = pl.Series(moments).cast(pl.Datetime(unit))  # type: ignore[arg-type]
    expected = [one(moment.isoformat()) for moment in column.to_list()]
    assert parse_times(column).to_list() == expected


@given(st.datetimes(datetime(1900, 1, 1), datetime(2100, 12, 31)))
def test_dates_as_numbers(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    for form in ("%Y%m%d", "%Y%m%d%H%M%S"):
        text = moment.strftime(form)
        expected = parse_time(datetime.strptime(text, form).isoformat())
        assert parse_time(text) == parse_time(int(text)) == expected


@given(
    st.integers(int(5e11) + 1, LATEST_MS),
    st.integers(-499, 499),
    st.sampled_from([int, str]),
)
def test_microseconds_and_nanoseconds(ms: int, rest: int, kind: type) -> None:
    assert parse_time(kind(ms * 1000 + rest)) == ms
    if ms * 1_000_000 < 9e18:
        assert parse_time(kind(ms * 1_000_000 + rest * 999)) == ms


@given(ANY_MS)
def test_what_is_written_is_read_back(ms: int) -> None:
    text = iso(ms)
    assert text.endswith("Z")
    assert parse_time(text) == ms
    assert datetime.fromisoformat(text) - EPOCH == timedelta(milliseconds=ms)


@given(
    ANY_MS.filter(lambda ms: abs(ms) >= 1e11 and not DATE_TIMES[0] <= ms <= DATE_TIMES[1]),
    st.sampled_from([int, float, str]),
)
def test_milliseconds(ms: int, kind: type) -> None:
    assert parse_time(kind(ms)) == ms


@given(st.integers(-(10**14) + 1, 10**14 - 1), st.booleans())
def test_seconds_with_a_fraction(ms: int, written: bool) -> None:
    seconds = ms / 1000
    assume(not (seconds % 1 == 0 and DATES[0] <= seconds <= DATES[1]))
    if EARLIEST_MS <= ms <= LATEST_MS:
        assert parse_time(repr(seconds) if written else seconds) == ms
    else:
        with pytest.raises(ValueError, match="between the years 1 and 9999"):
            parse_time(seconds)


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31)),
    st.integers(-23 * 60, 23 * 60),
)
def test_zones(moment: datetime, offset: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    exact = (zoned - EPOCH) / timedelta(milliseconds=1)
    assert abs(parse_time(zoned.isoformat()) - exact) <= 0.51
    assert parse_time(moment.isoformat()) == parse_time(moment.replace(tzinfo=UTC).isoformat())


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (99_999_999_999, 99_999_999_999_000),  # the last second
        (100_000_000_000, 100_000_000_000),  # the first millisecond
        (-100_000_000_000, -100_000_000_000),
        ("1769860800", 1_769_860_800_000),
        (1769860800.25, 1_769_860_800_250),
        (0, 0),
        (-1, -1000),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000),
        ("2026-01-31T14:00:00+02:00", 1_769_860_800_000),
        ("2026-01-31 12:00", 1_769_860_800_000),
        ("2026-01-31", 1_769_817_600_000),
        ("0001-01-01", EARLIEST_MS),
        ("9999-12-31T23:59:59.999Z", LATEST_MS),
    ],
)
def test_examples(value: object, ms: int) -> None:
    assert parse_time(value) == ms


@pytest.mark.parametrize(
    "value",
    [
        "yesterday", "", "2026-13-01", "25:00", True, None, [], {}, b"1",
        float("nan"), float("inf"), "nan", "-inf", "1e400", 
        pytest.param(10**400, id="huge"), pytest.param("9" * 5000, id="long"), -(10**30),
        LATEST_MS + 1, EARLIEST_MS - 1,
        "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "9999-12-31T23:59:59.9999Z",
    ],
)  # fmt: skip
def test_what_is_no_time_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        parse_time(value)
